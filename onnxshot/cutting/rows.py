"""What a layer multiplies its weight with, at some positions of its output: rows that its weight can be fitted on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshot.maths.patches import patches

Feeds = Sequence[Mapping[str, NDArray[Any]]]
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, Gemm or MatMul with a float32 weight of its own, by the names of its tensors.

    bias: a constant of its own, that of the Add behind a MatMul too; "" where there is none. output: what the bias was
    already added to. columns: inputs of one output value.
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
    def groups(self) -> int:
        """Groups of a Conv; 1 for all else."""
        return int(self.attrs.get("group", 1))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of a Conv's window; () for all else."""
        return self.shape[2:] if self.op == "Conv" else ()

    @property
    def columns(self) -> int:
        """K: inputs of one output value."""
        return math.prod(self.shape[1:]) if self.op == "Conv" else self.shape[1 if self._turned else 0]

    @property
    def _turned(self) -> bool:
        return bool(self.attrs.get("transB", 0))

    def table(self, weight: NDArray[Any]) -> NDArray[Any]:
        """A weight as [G, O / G, K]."""
        rows = weight if self.op == "Conv" or self._turned else weight.T
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def stored(self, table: NDArray[np.floating]) -> NDArray[np.float32]:
        """The inverse of `table`."""
        flat = table.reshape(table.shape[0] * table.shape[1], -1)
        rows = flat if self.op == "Conv" or self._turned else flat.T
        return np.ascontiguousarray(rows.reshape(self.shape).astype(np.float32))

    def inputs(self, x: NDArray[Any], share: int, number: int) -> NDArray[np.float32]:
        """What is multiplied at `share` positions of a sample's output [N, G, K]; other positions for other samples."""
        if self.op != "Conv":
            at = spread_over(math.prod(x.shape[:-1]), share, number)
            return x.reshape(-1, 1, x.shape[-1])[at]
        sizes, begin = self._windows(x.shape[2:])
        ones = [1] * len(sizes)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        at = spread_over(math.prod(sizes), share, number)
        taken = [
            patches(one, at, sizes, kernel=self.kernel, strides=strides, dilations=dilations, begin=begin, fill=0.0)
            for one in x
        ]
        return np.concatenate(taken).reshape(len(at) * len(x), self.groups, -1)

    def outputs(self, y: NDArray[Any], share: int, number: int) -> NDArray[np.float32]:
        """A sample's outputs at the same positions [N, O]."""
        if self.op != "Conv":
            return y.reshape(-1, y.shape[-1])[spread_over(math.prod(y.shape[:-1]), share, number)]
        flat = y.reshape(y.shape[0], y.shape[1], -1)
        at = spread_over(flat.shape[2], share, number)
        return np.ascontiguousarray(flat[:, :, at].transpose(0, 2, 1)).reshape(-1, y.shape[1])

    def _windows(self, before: Sequence[int]) -> tuple[list[int], list[int]]:
        """Sizes of the output, and padding in front, of a Conv: ONNX Conv-11."""
        ones = [1] * len(before)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        pads = list(self.attrs.get("pads", [0] * len(before) * 2))
        how = self.attrs.get("auto_pad", b"NOTSET")
        sizes, begin = [], []
        for axis, size in enumerate(before):
            reach = (self.kernel[axis] - 1) * dilations[axis] + 1
            if how.startswith(b"SAME"):
                out = -(-size // strides[axis])
                pad = max((out - 1) * strides[axis] + reach - size, 0)
                first = pad // 2 if how == b"SAME_UPPER" else pad - pad // 2
            else:
                first = 0 if how == b"VALID" else pads[axis]
                last = 0 if how == b"VALID" else pads[axis + len(before)]
                out = (size + first + last - reach) // strides[axis] + 1
            sizes.append(out)
            begin.append(first)
        return sizes, begin


def layers_of(model: ModelProto) -> dict[str, Layer]:
    """The layers of a model's top-level graph by node name; weights that are shared are nobody's own."""
    constants = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
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
        shape = tuple(constants[node.input[1]].dims)
        plain = attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
        if not plain or (node.op_type != "Conv" and len(shape) != 2):
            continue
        bias, output = node.input[2] if len(node.input) > 2 else "", node.output[0]
        if node.op_type == "MatMul" and output not in given_out:
            bias, output = _added(uses.get(output, []), output, constants)
        outputs = shape[0] if node.op_type == "Conv" or attrs.get("transB", 0) else shape[1]
        if bias and (bias not in own or math.prod(constants[bias].dims) != outputs):
            bias, output = "", node.output[0]
            if len(node.input) > 2:
                continue  # a bias of another shape: nothing that a column of ones can stand for
        found[node.name] = Layer(node.name, node.op_type, node.input[0], node.input[1], bias, output, shape, attrs)
    return found


def _added(readers: Sequence[NodeProto], output: str, constants: Mapping[str, TensorProto]) -> tuple[str, str]:
    """(bias, what it gives) of the Add behind a MatMul that alone reads its output."""
    if len(readers) == 1 and readers[0].op_type == "Add":
        others = [name for name in readers[0].input if name != output]
        if len(others) == 1 and others[0] in constants:
            return others[0], readers[0].output[0]
    return "", output


def spread_over(size: int, share: int, number: int) -> Positions:
    """So many positions of `size`, evenly spread; another sample begins at another place."""
    count = min(share, size)
    start = (number * 0.618034) % 1.0  # multiples of the golden ratio are spread evenly too
    return np.minimum(((np.arange(count) + start) * (size / count)).astype(np.int64), size - 1)
