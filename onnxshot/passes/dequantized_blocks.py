"""Write weights in blocks of 4 or 8 bits as standard ONNX: integers -> DequantizeLinear-21 -> product or Gather.

Integers are signed and have no zero point where blocks are symmetric, else unsigned. Matrices are stored [inputs,
outputs], so that blocks lie along axis 0: OpenVINO before 2025.2 reads no others, and ONNX Runtime fuses no others.

Where `Target.shares_blocks` is set, all readers of a weight share one DequantizeLinear, and a product by a tied table
reads its transpose. Elsewhere every product gets constants and a DequantizeLinear of its own. ONNX Runtime fuses these
to MatMulNBits if nothing else matches first, which these rewrites make sure of:

    Gemm, or MatMul of matrices    x -> Unsqueeze -> MatMul -> + bias -> Squeeze    else it becomes a Gemm, not fused
    MatMul -> Relu, Clip or Q      MatMul -> Sum of one input -> Relu, Clip or Q    else the pair is matched
    DQ -> MatMul                   DQ -> Sum of one input -> MatMul                 else it is an int8 product
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.maths.quant_scheme import UINT4, UINT8, PerBlock, PerTensor, QuantScheme
from onnxshot.passes.blocks import LAZY_BYTES, Work
from onnxshot.planning.block_schemes import input_axis, scale_type
from onnxshot.planning.plan import RoundedBlocks, WeightPlan
from onnxshot.targets.base import Target

_STOPPED = ("Relu", "Clip", "QuantizeLinear")  # ONNX Runtime matches a product and one of these before it fuses it


@dataclass(slots=True)
class DequantizedBlocks:
    """Rewrites nodes whose weights are dequantized in blocks, or with one scale per output.

    Attributes:
        model: the model, which is edited in place.
        target: the rules of the runtime.
        ties: pairs of equal matrices (first, second, whether the second is the transpose), as in `tie_weights.ties_of`.
        rounded: name of a weight -> its integers, where they were chosen with data.
        tables: weights that a Gather reads.
    """

    model: Model
    target: Target
    ties: Sequence[tuple[Constant, Constant, bool]] = ()
    rounded: Mapping[str, RoundedBlocks] = field(default_factory=dict)
    tables: Set[Constant] = frozenset()
    _made: dict[tuple[Constant, bool, bool, QuantScheme, int], Tensor] = field(default_factory=dict)

    def rewrite(self, graph: Graph, node: Node, planned: WeightPlan) -> None:
        """Rewrite a node in the form that is planned for its weight."""
        slot = planned.slot
        weight, axis = node.inputs[slot], input_axis(node, slot)
        assert isinstance(weight, Constant) and axis is not None
        inputs_first = axis != len(weight.shape) - 1
        product = node.op in ("MatMul", "Gemm") and slot == 1 and len(weight.shape) == 2
        if not product:
            node.inputs[slot] = self._floats(weight, inputs_first, inputs_first, planned)
            return
        if not self.target.shares_blocks:
            self._isolated(graph, node, self._floats(weight, inputs_first, True, planned, shared=False))
            return
        source, crossed = next(((a, t) for a, b, t in self.ties if b is weight), (weight, False))
        as_table = source in self.tables
        floats = self._floats(source, inputs_first ^ crossed, not as_table, planned, reader=weight)
        if node.op == "Gemm":
            node.attrs["transB"] = int(as_table)
        elif as_table:
            attrs = {"perm": [1, 0]}
            (floats,) = edit.add_node(
                self.model, "Transpose", [floats], base=node.label, suffix="turned", attrs=attrs, graph=graph
            ).outputs
        node.inputs[1] = floats

    def _floats(
        self, weight: Constant, inputs_first: bool, inputs_first_in_file: bool, planned: WeightPlan,
        *, shared: bool = True, reader: Constant | None = None,
    ) -> Tensor:  # fmt: skip
        """The floats of a weight [.., N, K], or [.., K, N] if `inputs_first`, from its integers in either order."""
        granularity = planned.scheme.granularity
        size = granularity.size if isinstance(granularity, PerBlock) else 0
        key = (weight, inputs_first, inputs_first_in_file, replace(planned.scheme, granularity=PerTensor()), size)
        if not shared or key not in self._made:
            given = self.rounded.get(weight.name) or self.rounded.get((reader or weight).name)
            made = self._dequantized(weight, inputs_first, inputs_first_in_file, planned, given)
            if not shared:
                return made
            self._made[key] = made
        return self._made[key]

    def _dequantized(
        self, weight: Constant, inputs_first: bool, inputs_first_in_file: bool, planned: WeightPlan,
        given: RoundedBlocks | None,
    ) -> Tensor:  # fmt: skip
        scheme, model, name = planned.scheme, self.model, weight.name
        inputs, outputs = weight.shape[-1 - inputs_first], weight.shape[-2 + inputs_first]
        granularity, bits = scheme.granularity, scheme.dtype.bits
        whole = not isinstance(granularity, PerBlock)
        size = inputs if whole else granularity.size  # type: ignore[union-attr]
        fitted = QuantScheme(UINT4 if bits == 4 else UINT8, scheme.symmetric, PerBlock(1, size))
        # TensorRT takes no scale that is computed, such as by a Cast from a narrower type.
        narrow = weights.elem_type(weight) if self.target.everywhere else scale_type(weight)
        scales = np.dtype(helper.tensor_dtype_to_np_dtype(narrow))
        work = _Standard(weight, inputs_first, fitted, planned.method, scales, given)
        work.signed = self.target.negative_scales
        work.inputs_first_in_file, work.whole, work.stored = inputs_first_in_file, whole, scheme.dtype.storage
        arrays = _lazy(work, weight, inputs, outputs, -(-inputs // size))
        values = edit.add_constant(model, name, "blocks", arrays[0])
        scale: Tensor = edit.add_constant(model, name, "scales", arrays[1])
        scale.of_blocks = True
        kind = weights.elem_type(weight)
        if narrow != kind:
            attrs = {"to": kind}
            (scale,) = edit.add_node(model, "Cast", [scale], base=name, suffix="real_scales", attrs=attrs).outputs
        zeros = [] if scheme.symmetric else [edit.add_constant(model, name, "zero_points", arrays[2])]
        rank = len(weight.shape)
        along = rank - 2 if inputs_first_in_file else rank - 1
        attrs = {"axis": (2 * rank - 3 - along) if whole else along} | ({} if whole else {"block_size": size})
        node = edit.add_node(
            model, "DequantizeLinear", [values, scale, *zeros], base=name, suffix="dequantized", attrs=attrs
        )
        return node.outputs[0]

    def _isolated(self, graph: Graph, node: Node, floats: Tensor) -> None:
        """MatMul or Gemm of x and floats, in the form that ONNX Runtime fuses."""
        x, out, base = node.inputs[0], node.outputs[0], node.label
        shape, maker = self.model.shape(x), edit.producer(x)
        axes = [0, 1] if shape is not None and len(shape) == 1 else [0]
        flat = node.op == "Gemm" or shape is None or len(shape) < 3
        followers = {user.op for user in edit.consumers(out)}
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        bias = None if node.attrs.get("beta", 1.0) == 0.0 else bias
        if bias is not None and node.attrs.get("beta", 1.0) != 1.0:
            by = edit.add_constant(self.model, base, "beta", np.asarray(node.attrs["beta"], np.float32))
            bias = self._op(graph, node, "Mul", [bias, by], "scaled")
        if maker is not None and maker.op == "DequantizeLinear":
            x = self._op(graph, node, "Sum", [x], "alone")
        axis = edit.add_constant(self.model, base, "axes", np.array(axes, np.int64)) if flat else None
        if axis is not None:
            x = self._op(graph, node, "Unsqueeze", [x, axis], "unsqueezed")
        node.op = "MatMul"
        node.attrs.clear()
        node.inputs.clear()
        node.inputs.extend([x, floats])
        after = [("Add", [bias], "bias")] if bias is not None else []
        after += [("Squeeze", [axis], "squeezed")] if axis is not None else []
        stopped = followers & set(_STOPPED) if not after or axis is None else followers & {"QuantizeLinear"}
        after += [("Sum", [], "fence")] if stopped else []
        if not after:
            return
        node.outputs.clear()
        last: Tensor = Variable(self.model.fresh(base, "product"))
        node.outputs.append(last)
        for number, (op, others, suffix) in enumerate(after):
            made = [out] if number == len(after) - 1 else 1
            last = edit.add_node(
                self.model, op, [last, *others], base=base, suffix=suffix, outputs=made, graph=graph
            ).outputs[0]

    def _op(self, graph: Graph, node: Node, op: str, inputs: Sequence[Tensor], suffix: str) -> Tensor:
        return edit.add_node(self.model, op, inputs, base=node.label, suffix=suffix, graph=graph).outputs[0]


@dataclass(slots=True)
class _Standard(Work):
    """Computes integers, scales and zero points in the layout of DequantizeLinear."""

    inputs_first_in_file: bool = False
    whole: bool = False
    stored: Any = None

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Integers [.., N, K], scales and zero points [.., N, B], or with the last two axes the other way round.

        Without blocks, scales and zero points are [N].
        """
        codes, params = self.codes()
        lead = tuple(self.weight.shape[:-2])
        signed, scale = self.scheme.symmetric, params.scale
        if signed and not self.signed:
            size = self.scheme.granularity.size  # type: ignore[union-attr]
            codes, scale = _positive(codes, scale, size, self.scheme.dtype.bits)
        middle = (1 << (self.scheme.dtype.bits - 1)) if signed else 0

        def shaped(array: NDArray[Any]) -> NDArray[Any]:
            stack = array.reshape(*lead, -1, array.shape[-1])
            if self.whole and array.shape[-1] == 1:
                return stack.reshape(-1)
            return np.ascontiguousarray(np.swapaxes(stack, -1, -2) if self.inputs_first_in_file else stack)

        values = shaped(codes)
        values = (values.view(np.int8) - np.int8(middle)) if signed and middle < 128 else values
        values = (values ^ np.uint8(128)).view(np.int8) if signed and middle == 128 else values
        zeros = shaped(np.asarray(params.zero_point).astype(np.uint8))
        return values.astype(self.stored), shaped(scale.astype(self.scale_type)), zeros.astype(self.stored)


def _positive(
    codes: NDArray[np.uint8], scale: NDArray[np.float32], size: int, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Integers [N, K] and scales [N, B] of the same floats, with positive scales. The lowest integer is moved by 1."""
    if (scale > 0).all():
        return codes, scale
    middle = 1 << (bits - 1)
    turned = np.repeat(scale < 0, size, axis=1)[:, : codes.shape[1]]
    mirrored = np.minimum(2 * middle - codes.astype(np.int16), 2 * middle - 1).astype(np.uint8)
    return np.where(turned, mirrored, codes), np.abs(scale)


def _lazy(
    work: _Standard, weight: Constant, inputs: int, outputs: int, count: int
) -> Sequence[NDArray[Any] | weights.ComputedValues]:
    """The three arrays of a weight; those of a large one are computed when they are written."""
    if weights.size_bytes(weight) <= LAZY_BYTES:
        return work.arrays()
    lead = tuple(weight.shape[:-2])

    def shape(columns: int) -> tuple[int, ...]:
        return (*lead, columns, outputs) if work.inputs_first_in_file else (*lead, outputs, columns)

    few = (outputs,) if work.whole else shape(count)
    kinds = (np.dtype(work.stored), work.scale_type, np.dtype(work.stored))
    return [
        weights.ComputedValues(sizes, kind, partial(work.take, i))
        for i, (sizes, kind) in enumerate(zip((shape(inputs), few, few), kinds, strict=True))
    ]
