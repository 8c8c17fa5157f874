"""Write weights in blocks of 4 or 8 bits: integers with a scale, and perhaps a zero point, per block of inputs.

Integers are stored as com.microsoft.MatMulNBits reads them: unsigned, [outputs, blocks, bytes of a block], two 4-bit
values to a byte, the first in the low half. Three forms read this one array, so that a table that is also the matrix of
the output scores is stored once:

    MatMul, Gemm            x -> MatMulNBits
    Gather of a table       ids -> Gather of whole rows -> unpacked -> rows of floats
    other products          unpacked -> MatMul; runtimes compute the floats once, when they load the file

Unpacking takes standard operators that every version of ONNX Runtime has: Cast, Floor, Sub, Mul, Concat and Reshape.
com.microsoft.GatherBlockQuantized takes 8-bit data from ONNX Runtime 1.23 on only, and up to 1.26 its results are wrong
for 4-bit data with zero points and an odd number of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.maths.quant_scheme import PerBlock, QuantScheme
from onnxshot.passes.blocks import blocks_of
from onnxshot.planning.block_schemes import input_axis
from onnxshot.planning.plan import GATHERED, OPERATOR, RoundedBlocks, WeightPlan

_DOMAIN = "com.microsoft"
_LEVEL = 4  # int8 activations; without it, ONNX Runtime computes 8-bit weights at 0.05x of float


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as its constants.

    Attributes:
        values: uint8 [N, B, bytes of a block], for N outputs and B blocks of inputs.
        scales: [N, B].
        zeros: uint8 [N, bytes of B zero points]; None where every zero point is 8 or 128.
        bits: 4 or 8.
        size: inputs of a block.
        inputs: number of inputs; the last block may be longer than what is left of them.
    """

    values: Constant
    scales: Constant
    zeros: Constant | None
    bits: int
    size: int
    inputs: int

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.values.shape[0])

    @property
    def blocks(self) -> int:
        """Number of blocks of an output."""
        return int(self.values.shape[1])


@dataclass(slots=True)
class BlockWeights:
    """Rewrites nodes whose weights are in blocks. A weight that several nodes read, or that is tied, is stored once.

    Attributes:
        model: the model, which is edited in place.
        ties: pairs of equal matrices (first, second, whether the second is the transpose), as in `tie_weights.ties_of`.
        rounded: name of a weight -> its integers, where they were chosen with data.
    """

    model: Model
    ties: Sequence[tuple[Constant, Constant, bool]] = ()
    rounded: Mapping[str, RoundedBlocks] = field(default_factory=dict)
    _made: dict[tuple[Constant, bool, QuantScheme], Packed] = field(default_factory=dict)

    def rewrite(self, graph: Graph, node: Node, planned: WeightPlan) -> None:
        """Rewrite a node in the form that is planned for its weight."""
        packed = self._packed(node, planned)
        if planned.form == OPERATOR:
            self._product(graph, node, packed)
        elif planned.form == GATHERED:
            self._table(graph, node, packed)
        else:
            self._folded(node, planned.slot, packed)

    def _packed(self, node: Node, planned: WeightPlan) -> Packed:
        """The constants of a node's weight."""
        weight, axis = node.inputs[planned.slot], input_axis(node, planned.slot)
        assert axis is not None
        turned = axis != len(weight.shape) - 1  # the summed axis is not the last one: it is stored [.., K, N]
        granularity = planned.scheme.granularity
        assert isinstance(granularity, PerBlock)
        scheme = QuantScheme(planned.scheme.dtype, planned.scheme.symmetric, PerBlock(1, granularity.size))
        source, crossed = next(
            ((a, t) for a, b, t in self.ties if b is weight and a is not b), (weight, False)
        )
        key = (source, turned ^ crossed, scheme)
        if key not in self._made:
            self._made[key] = self._constants(source, turned ^ crossed, scheme, planned.method, weight)
        return self._made[key]

    def _constants(
        self, weight: Constant, turned: bool, scheme: QuantScheme, method: str, reader: Constant
    ) -> Packed:  # fmt: skip
        given = self.rounded.get(weight.name) or self.rounded.get(reader.name)
        found = blocks_of(weight, turned=turned, scheme=scheme, method=method, given=given)
        name, model = weight.name, self.model
        zeros = None if scheme.symmetric else edit.add_constant(model, name, "zero_points", found.zeros)
        values = edit.add_constant(model, name, "blocks", found.values)
        scales = edit.add_constant(model, name, "scales", found.scales)
        scales.of_blocks = True
        return Packed(values, scales, zeros, scheme.dtype.bits, found.size, found.inputs)

    def _product(self, graph: Graph, node: Node, packed: Packed) -> None:
        """MatMul(x, w) -> MatMulNBits(x); Gemm(x, w, c) -> MatMulNBits(x) + c."""
        attrs = {
            "K": packed.inputs, "N": packed.outputs, "bits": packed.bits, "block_size": packed.size,
            "accuracy_level": _LEVEL,
        }  # fmt: skip
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        beta = float(node.attrs.get("beta", 1.0))
        unpack = _Unpack(self.model, None, node.label, weights.elem_type(node.inputs[1]))
        scales = unpack.real(packed, packed.scales, "real_scales")
        stored: list[Tensor] = [packed.values, *([packed.zeros] if packed.zeros is not None else [])]
        if scales is not packed.scales:
            # Without graph optimizations, ONNX Runtime packs constant integers together with scales that a Cast has not
            # made yet, and multiplies by what lies in memory. Integers that are no constants either are not packed.
            stored = [unpack.op("Identity", [constant], f"stored_{n}") for n, constant in enumerate(stored)]
        given = [node.inputs[0], stored[0], scales, *stored[1:]]
        node.op, node.domain = "MatMulNBits", _DOMAIN
        self.model.require_domain(_DOMAIN)
        node.attrs.clear()
        node.attrs.update(attrs)
        node.inputs.clear()
        node.inputs.extend(given)
        if bias is None or beta == 0.0:
            return
        out, base = node.outputs[0], node.label
        node.outputs.clear()
        product = Variable(self.model.fresh(base, "product"))
        node.outputs.append(product)
        if beta != 1.0:
            by = edit.add_constant(self.model, base, "beta", np.asarray(beta, np.float32))
            bias = edit.add_node(self.model, "Mul", [bias, by], base=base, suffix="scaled", graph=graph).outputs[0]
        edit.add_node(self.model, "Add", [product, bias], base=base, suffix="bias", outputs=[out], graph=graph)

    def _table(self, graph: Graph, node: Node, packed: Packed) -> None:
        """Gather(table, ids) -> the rows of the packed table, unpacked."""
        ids, out, base = node.inputs[1], node.outputs[0], node.label
        kind = weights.elem_type(node.inputs[0])
        shape = self.model.shape(ids)
        node.outputs.clear()
        edit.remove(self.model, [node])

        def picked(constant: Constant, suffix: str) -> Tensor:
            attrs = {"axis": 0}
            return edit.add_node(
                self.model, "Gather", [constant, flat], base=base, suffix=suffix, attrs=attrs, graph=graph
            ).outputs[0]

        lead: list[int] = [0] * len(shape) if shape is not None else [-1]
        flat = ids if shape is not None else _Unpack(self.model, graph, base, kind).reshaped(ids, [-1], "flat_ids")
        unpack = _Unpack(self.model, graph, base, kind)
        rows = unpack.floats(
            packed, picked(packed.values, "rows"),
            unpack.real(packed, picked(packed.scales, "row_scales"), "real_scales"),
            None if packed.zeros is None else picked(packed.zeros, "row_zero_points"), lead,
            out if shape is not None else None,
        )  # fmt: skip
        if shape is None:  # the number of axes of the ids is not known: their shape is read at run time
            sizes = edit.add_node(self.model, "Shape", [ids], base=base, suffix="ids_shape", graph=graph).outputs[0]
            columns = edit.add_constant(self.model, base, "columns", np.array([packed.inputs], np.int64))
            whole = edit.add_node(
                self.model, "Concat", [sizes, columns], base=base, suffix="shape", attrs={"axis": 0}, graph=graph
            ).outputs[0]
            edit.add_node(
                self.model, "Reshape", [rows, whole], base=base, suffix="in_shape", outputs=[out], graph=graph
            )

    def _folded(self, node: Node, slot: int, packed: Packed) -> None:
        """Give the node floats that are computed from constants alone."""
        weight, axis = node.inputs[slot], input_axis(node, slot)
        assert axis is not None
        turned = axis != len(weight.shape) - 1
        node.inputs[slot] = unpacked(
            self.model, packed, tuple(weight.shape), turned, base=weight.name, kind=weights.elem_type(weight)
        )


def unpacked(
    model: Model, packed: Packed, shape: tuple[int, ...], turned: bool, *, base: str, kind: int
) -> Tensor:  # fmt: skip
    """Floats that runtimes compute from a packed weight once, when they load the file.

    Args:
        model: the model, which gets the operators.
        packed: the weight.
        shape: shape of the floats, [.., N, K], or [.., K, N] if `turned`.
        turned: whether the inputs are the last axis but one.
        base: start of the names of new nodes.
        kind: ONNX type of the floats.
    """
    unpack = _Unpack(model, None, base, kind)
    scales = unpack.real(packed, packed.scales, "real_scales")
    whole = unpack.floats(packed, packed.values, scales, packed.zeros, [packed.outputs], None)
    if len(shape) > 2:
        whole = unpack.reshaped(whole, list((*shape[:-2], shape[-1], shape[-2]) if turned else shape), "matrices")
    if turned:
        perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        whole = unpack.op("Transpose", [whole], "turned", perm=perm)
    return whole


@dataclass(slots=True)
class _Unpack:
    """Adds the operators that turn packed integers into floats of an ONNX type."""

    model: Model
    graph: Graph | None
    base: str
    kind: int

    def op(self, op: str, inputs: Sequence[Tensor], suffix: str, out: Tensor | None = None, **attrs: Any) -> Tensor:
        """Add a node, and return its output."""
        outputs: Sequence[Tensor] | int = 1 if out is None else [out]
        node = edit.add_node(
            self.model, op, inputs, base=self.base, suffix=suffix, attrs=attrs, outputs=outputs, graph=self.graph
        )
        return node.outputs[0]

    def real(self, packed: Packed, scales: Tensor, suffix: str) -> Tensor:
        """Scales of a packed weight in the float type; those that came in a narrower one are widened."""
        if weights.elem_type(packed.scales) == self.kind:
            return scales
        return self.op("Cast", [scales], suffix, to=self.kind)

    def reshaped(self, tensor: Tensor, shape: Sequence[int], suffix: str, out: Tensor | None = None) -> Tensor:
        """Reshape a tensor; a size of 0 keeps that of the input."""
        sizes = edit.add_constant(self.model, self.base, f"{suffix}_shape", np.array(shape, np.int64))
        return self.op("Reshape", [tensor, sizes], suffix, out)

    def number(self, value: float, suffix: str) -> Constant:
        """A constant of the float type."""
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        return edit.add_constant(self.model, self.base, suffix, np.asarray(value).astype(dtype))

    def nibbles(self, tensor: Tensor, lead: Sequence[int], tail: Sequence[int], suffix: str) -> Tensor:
        """Split floats of bytes [lead, .., n] into halves [lead, .., 2n]; `tail`: the sizes after `lead`."""
        high = self.op("Floor", [self.op("Mul", [tensor, self.number(1 / 16, "sixteenth")], f"{suffix}_shifted")],
                       f"{suffix}_high")  # fmt: skip
        low = self.op("Sub", [tensor, self.op("Mul", [high, self.number(16, "sixteen")], f"{suffix}_upper")],
                      f"{suffix}_low")  # fmt: skip
        both = [self.reshaped(half, [*lead, *tail, 1], f"{suffix}_{n}") for n, half in enumerate((low, high))]
        return self.op("Concat", both, f"{suffix}_pairs", axis=len(lead) + len(tail))

    def floats(
        self, packed: Packed, values: Tensor, scales: Tensor, zeros: Tensor | None, lead: Sequence[int],
        out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Integers [lead, B, bytes], scales [lead, B], zero points [lead, bytes] -> floats [lead, K]."""
        count, size = packed.blocks, packed.size
        whole = self.op("Cast", [values], "as_float", to=self.kind)
        if packed.bits == 4:
            whole = self.reshaped(
                self.nibbles(whole, lead, [count, size // 2], "value"), [*lead, count, size], "blocks"
            )
        if zeros is None:
            middle: Tensor = self.number(1 << (packed.bits - 1), "middle")
        else:
            middle = self.op("Cast", [zeros], "zero_as_float", to=self.kind)
            if packed.bits == 4:
                width = -(-count // 2)
                middle = self.nibbles(middle, lead, [width], "zero")
                middle = self.reshaped(middle, [*lead, 2 * width], "zeros")
                if count % 2:
                    middle = self._cut(middle, len(lead), count, "zeros_cut")
            middle = self.reshaped(middle, [*lead, count, 1], "zero_of_block")
        steps = self.op("Sub", [whole, middle], "steps")
        real = self.op("Mul", [steps, self.reshaped(scales, [*lead, count, 1], "scale_of_block")], "scaled")
        last = count * size == packed.inputs
        flat = self.reshaped(real, [*lead, count * size], "floats", out if last else None)
        return flat if last else self._cut(flat, len(lead), packed.inputs, "cut", out)

    def _cut(self, tensor: Tensor, axis: int, size: int, suffix: str, out: Tensor | None = None) -> Tensor:
        """The first `size` values along an axis."""
        bounds = [
            edit.add_constant(self.model, self.base, f"{suffix}_{name}", np.array([value], np.int64))
            for name, value in (("start", 0), ("end", size), ("axis", axis))
        ]
        return self.op("Slice", [tensor, *bounds], suffix, out)
