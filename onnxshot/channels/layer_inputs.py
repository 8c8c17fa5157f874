"""Layers with weights of their own, and samples of their inputs and outputs as rows to fit the weights on."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshot import memory
from onnxshot.execution.layer_rows import MatrixForm
from onnxshot.graph.lean_model import LeanModel

_MOST_COLUMNS = 3072
"""Most inputs of one output that second moments are computed of at once, at any budget: solving takes their cube."""
_BYTES = 64  # per pair of inputs: second moments in float32 and float64, of parts of the samples and inverted


def whole_columns() -> int:
    """Most inputs of one output that second moments are computed of at once: those that fit the memory budget."""
    return min(_MOST_COLUMNS, math.isqrt(memory.budget() // _BYTES))


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, Gemm or MatMul with a float32 weight that no other node reads.

    Attributes:
        name, op: Node name and operator.
        input, weight: Tensor names.
        bias: Name of a constant that no other node reads, also that of the Add behind a MatMul; "" if there is none.
        output: Name of the tensor after the bias is added.
        shape: Shape of the weight as stored.
        attrs: Attributes of the node.
    """

    name: str
    op: str
    input: str
    weight: str
    bias: str
    output: str
    shape: tuple[int, ...]
    attrs: Mapping[str, Any]

    @property
    def form(self) -> MatrixForm:
        """How the layer multiplies its input and weight."""
        return MatrixForm(self.op, self.attrs)

    @property
    def groups(self) -> int:
        """Number of groups of a Conv; 1 for other operators."""
        return int(self.attrs.get("group", 1))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size of a Conv; () for other operators."""
        return self.shape[2:] if self.op == "Conv" else ()

    @property
    def outputs_of_group(self) -> int:
        """O / G, the number of outputs of each group."""
        return self.shape[0] // self.groups if self.op == "Conv" else self.shape[1 if self.form.transposed else 0]

    @property
    def columns(self) -> int:
        """K, the number of inputs of one output value."""
        return math.prod(self.shape[1:]) if self.op == "Conv" else self.shape[0 if self.form.transposed else 1]

    def table(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return a weight as [G, O / G, K]."""
        return self.form.table(weight)

    def stored(self, table: NDArray[np.floating]) -> NDArray[np.float32]:
        """The inverse of `table`."""
        return self.form.stored(table, np.empty(self.shape, np.float32))

    def inputs(self, x: NDArray[Any], share: int, number: int) -> NDArray[np.float32]:
        """Inputs of `share` output positions of a sample [N, G, K]; the positions vary with the sample number."""
        sizes = self._sizes(x.shape[2:]) if self.op == "Conv" else ()
        return np.asarray(self.form.inputs(x, sizes, share, number, self.kernel))

    def outputs(self, y: NDArray[Any], share: int, number: int) -> NDArray[np.float32]:
        """Outputs of a sample at the same positions [N, O]."""
        return self.form.output_rows(y, share, number)[0]

    def _sizes(self, before: Sequence[int]) -> tuple[int, ...]:
        """Spatial output sizes of a Conv (ONNX Conv-11)."""
        ones = [1] * len(before)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        how = self.attrs.get("auto_pad", b"NOTSET")
        pads = [0] * len(before) * 2 if how == b"VALID" else list(self.attrs.get("pads", [0] * len(before) * 2))
        sizes = []
        for axis, size in enumerate(before):
            reach = (self.kernel[axis] - 1) * dilations[axis] + 1
            whole = size + pads[axis] + pads[axis + len(before)] - reach
            sizes.append(-(-size // strides[axis]) if how.startswith(b"SAME") else whole // strides[axis] + 1)
        return tuple(sizes)


def layers_of(given: ModelProto | LeanModel) -> dict[str, Layer]:
    """The layers of the top-level graph by node name; a layer whose weight other nodes read too is left out."""
    lean = LeanModel.of(given)
    model = lean.proto
    kinds = {name: lean.kind_of(name) for name in (*lean.initializers, *lean.weights)}
    constants = {name: shape for name, (kind, shape) in kinds.items() if kind == TensorProto.FLOAT}
    uses: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    given_out = {value.name for value in model.graph.output}
    own = {name for name in constants if len(uses.get(name, ())) == 1} - given_out
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in own or node.input[0] in constants:
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shape = constants[node.input[1]]
        plain = attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
        if not plain or (node.op_type != "Conv" and len(shape) != 2):
            continue
        bias, output = node.input[2] if len(node.input) > 2 else "", node.output[0]
        if node.op_type == "MatMul" and output not in given_out:
            bias, output = _added(uses.get(output, []), output, constants)
        outputs = shape[0] if node.op_type == "Conv" or attrs.get("transB", 0) else shape[1]
        if bias and (bias not in own or math.prod(constants[bias]) != outputs):
            bias, output = "", node.output[0]
            if len(node.input) > 2:
                continue  # the bias has another shape than one value per output
        found[node.name] = Layer(node.name, node.op_type, node.input[0], node.input[1], bias, output, shape, attrs)
    return found


def _added(readers: Sequence[NodeProto], output: str, constants: Container[str]) -> tuple[str, str]:
    """(bias, output) of the Add that alone reads the output of a MatMul; ("", output) if there is none."""
    if len(readers) == 1 and readers[0].op_type == "Add":
        others = [name for name in readers[0].input if name != output]
        if len(others) == 1 and others[0] in constants:
            return others[0], readers[0].output[0]
    return "", output
