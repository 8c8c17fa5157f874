"""Restore operators on integers (MatMulInteger, MatMulNBits, QAttention ...) to their float form.

Weights become the float values that their integers represent. The rounding of activations is removed.
qoperator_to_qdq.py handles operators between QuantizeLinear and DequantizeLinear, strip_qdq.py handles Q/DQ pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import moves_exactly
from onnxshot.maths.dequantize_stored import dequantize_blocks, fits_blocks
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.passes.base import Change
from onnxshot.passes.integer_operands import (
    Array,
    Made,
    Unsupported,
    constant_values,
    float_input,
    float_weight,
    lazy_constant,
    required,
)
from onnxshot.passes.integer_products import block_matmul, dynamic_matmul, integer_product, matmul_to_float
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.packed_tables import packed_table
from onnxshot.passes.strip_qdq import Restored

_SCALES = 8  # DynamicQuantizeLSTM: index of its first scale input: scale and zero point of W, then of R


@dataclass(frozen=True, slots=True)
class IntegerOpsToFloat:
    """Replace the operators of RULES with their float form, in subgraphs too.

    Edits count the operators. Skipped: operators whose weight, scale or zero point is computed or does not fit, whose
    input is quantized elsewhere, whose integer result is used in another way, or whose weight has an unsupported form.

    Attributes:
        precision: filled by `run`: label of each new node -> precision before, for example "dynamic uint8 x int8".
        restored: float weights made so far, shared with `StripQdq`.
    """

    precision: dict[str, str] = field(default_factory=dict)
    restored: Restored = field(default_factory=dict)
    name: str = "integer_ops_to_float"

    def run(self, model: Model) -> Change:
        """Restore the operators."""
        change = Change()
        for graph, node in list(model.walk()):
            rule = RULES.get(node.op)
            if rule is None or not node.outputs:
                continue
            try:
                made, words = rule(Writer(model, graph, node, self.restored))
            except Unsupported as stays:
                if stays.reason:
                    change.skip(node, stays.reason)
                continue
            self.precision[made.label] = words
            change.edits += 1
        if change.edits:
            _drop_rests(model)
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _drop_rests(model: Model) -> None:
    """MatMul(x, W) + MatMul(x - x, W) -> MatMul(x, W): what is left of an input in two parts (quantize_dynamic.py)."""
    for _, node in list(model.walk()):
        near = edit.producer(node.inputs[1]) if node.op == "Sub" and len(node.inputs) == 2 else None
        if near is None or near.op != "Identity" or near.inputs[0] is not node.inputs[0]:
            continue
        for product in edit.consumers(node.outputs[0]):
            add = edit.only_consumer(model, product.outputs[0]) if product.op in ("MatMul", "Gemm") else None
            if add is not None and add.op == "Add":
                other = next(t for t in add.inputs if t is not product.outputs[0])
                add.op = "Identity"
                add.inputs.clear()
                add.inputs.append(other)


def _lstm(write: Writer) -> Made:
    """DynamicQuantizeLSTM -> LSTM. W and R are [directions, inputs, 4H] there, and [directions, 4H, inputs] in LSTM."""
    node = write.node
    real: list[Tensor] = []
    for slot, first in ((1, _SCALES), (2, _SCALES + 2)):
        stored, scale, zero = required(node, slot), required(node, first), constant_values(node, first + 1)
        shift, step = _by_direction(0 if zero is None else zero), _by_direction(scale)

        def compute(q: Array, shift: Array = shift, step: Array = step) -> Array:
            return np.ascontiguousarray(((q.astype(np.float32) - shift) * step).transpose(0, 2, 1))

        shape = (stored.shape[0], stored.shape[2], stored.shape[1])
        real.append(lazy_constant(write, node.inputs[slot], shape, np.dtype(np.float32), compute, shift, step))
    kind = required(node, 2).dtype
    x, rest = node.inputs[0], list(node.inputs[3:_SCALES])
    while rest and not rest[-1].name:
        rest.pop()
    node.inputs.clear()
    node.inputs.extend([x, *real, *rest])
    node.op, node.domain = "LSTM", None
    return node, f"dynamic uint8 x {kind}"


def _by_direction(values: Any) -> NDArray[np.float32]:
    """Reshape [], [1], [directions] or [directions, 4H] so that it broadcasts to [directions, inputs, 4H]."""
    found = np.asarray(values, np.float32)
    return found.reshape(-1, 1, found.shape[1] if found.ndim > 1 else 1)


def _attention(write: Writer) -> Made:
    """QAttention(x, W, bias, scales of x and W, mask, zero points of x and W, past) -> Attention."""
    node = write.node
    kind = required(node, 1).dtype
    x, computed, _ = float_input(write, 0, 3, 6)
    weight, none = float_weight(write, 1, 4, 7), Variable("")
    inputs = [x, weight, node.inputs[2], given(node, 5) or none, given(node, 8) or none]
    while not inputs[-1].name:
        inputs.pop()
    outputs = list(node.outputs)
    made = write.ops("Attention", inputs, outputs, node.domain, **node.attrs)
    write.done()
    return made, f"{'static' if computed is None else 'dynamic'} uint8 x {kind}"


def _embeddings(write: Writer) -> Made:
    """QEmbedLayerNormalization(ids, segments, 3 tables, gamma, beta, mask, scales, zero points) -> its float form."""
    node, none = write.node, Variable("")
    kind = required(node, 2).dtype
    tables: list[Tensor] = [
        float_weight(write, 2 + i, 8 + i, 13 + i) if given(node, 2 + i) is not None else none for i in range(5)
    ]
    inputs = [node.inputs[0], given(node, 1) or none, *tables, given(node, 7) or none]
    while not inputs[-1].name:
        inputs.pop()
    made = write.ops("EmbedLayerNormalization", inputs, list(node.outputs), node.domain, **node.attrs)
    write.done()
    return made, f"weights {kind}"


def _block_gather(write: Writer) -> Made:
    """GatherBlockQuantized(table, ids, scales, zero points) -> Gather. Tables are packed along the last axis."""
    node = write.node
    stored, scale, zeros = required(node, 0), required(node, 2), constant_values(node, 3)
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs.get("block_size", 128))
    axis, picked = int(node.attrs.get("quantize_axis", 1)), int(node.attrs.get("gather_axis", 0))
    packed = stored.dtype == np.uint8
    if stored.dtype.kind == "f" or stored.dtype.name.startswith("float") or not block:
        raise Unsupported("its table is stored in an unsupported form")
    shape = [*stored.shape[:-1], stored.shape[-1] * 8 // bits] if packed else list(stored.shape)
    axis %= len(shape)
    zero: Array | float = float(1 << (bits - 1)) if packed else 0.0
    if zeros is not None:
        zero = unpack_bits(zeros, bits)[..., : scale.shape[-1]] if packed else zeros.astype(np.float32)

    if not fits_blocks(shape, scale.shape, axis, block):
        raise Unsupported("its scales do not fit its table")

    def compute(q: Array) -> Array:
        return dequantize_blocks(unpack_bits(q, bits) if packed else q, scale, zero, axis, block)

    table = lazy_constant(write, node.inputs[0], shape, scale.dtype, compute, scale, zero, bits, block, axis)
    made = write.ops("Gather", [table, node.inputs[1]], [node.outputs[0]], axis=picked)
    write.done()
    return made, f"weights {bits} bits"


def _embedding(write: Writer) -> Made:
    """Gather(q [V, D], ids) -> Cast -> Mul(Gather(scale [V, 1], ids)) becomes Gather(table [V, D], ids)."""
    node, model = write.node, write.model
    stored = edit.constant_input(node, 0)
    if stored is None or stored.dtype.kind not in "iu":
        raise Unsupported("")
    if stored.ndim == 3:
        return packed_table(write)
    cast = edit.only_consumer(model, node.outputs[0])
    rescale = edit.only_consumer(model, cast.outputs[0]) if cast is not None and cast.op == "Cast" else None
    if rescale is None or rescale.op != "Mul":
        raise Unsupported("")
    makers = [edit.producer(tensor) for tensor in rescale.inputs]
    others = [m for m in makers if m is not None and m.op == "Gather" and m is not node]
    column = edit.constant_input(others[0], 0) if others else None
    if column is None or column.dtype.kind != "f" or others[0].inputs[1] is not node.inputs[1]:
        raise Unsupported("")
    scale, out = column, rescale.outputs[0]
    table = lazy_constant(
        write, node.inputs[0], stored.shape, scale.dtype, lambda q: (q * scale).astype(scale.dtype), scale
    )
    edit.remove(model, [rescale])
    return write.ops("Gather", [table, node.inputs[1]], [out], **node.attrs), f"weights {stored.dtype}"


def _moved(write: Writer) -> Made:
    """DynamicQuantizeLinear -> DequantizeLinear is removed; q -> Reshape .. -> DequantizeLinear gets the DQ first."""
    node, model = write.node, write.model
    maker = edit.producer(node.inputs[0])
    if maker is not None and maker.op == "DynamicQuantizeLinear":
        x, _, _ = float_input(write, 0, 1, 2)
        edit.replace_uses(model, node.outputs[0], write.op("Identity", x))
        write.done()
        return maker, "dynamic uint8"
    scale, moves, source = edit.constant_input(node, 1), list[Node](), node.inputs[0]
    while maker is not None and moves_exactly(maker) and maker.op != "Pad" and len(maker.outputs) == 1:
        if edit.only_consumer(model, source) is None:
            break
        moves.append(maker)
        source = maker.inputs[0]
        maker = edit.producer(source)
    if not moves or scale is None or scale.size != 1:
        raise Unsupported("")
    out, kind = node.outputs[0], str(weights.read(source).dtype) if isinstance(source, Constant) else "uint8"
    moves[-1].inputs[0] = write.op("DequantizeLinear", source, *node.inputs[1:])
    write.done()
    for move in moves:
        write.graph.value_infos.pop(move.outputs[0].name, None)  # it holds floats now
    moves[0].outputs[0] = out
    return moves[-1], f"weights {kind}"


RULES: dict[str, Callable[[Writer], Made]] = {  # integer operator -> the function that replaces it
    "MatMulInteger": integer_product,
    "ConvInteger": integer_product,
    "DynamicQuantizeMatMul": dynamic_matmul,
    "MatMulIntegerToFloat": matmul_to_float,
    "MatMulNBits": block_matmul,
    "DynamicQuantizeLSTM": _lstm,
    "QAttention": _attention,
    "QEmbedLayerNormalization": _embeddings,
    "GatherBlockQuantized": _block_gather,
    "Gather": _embedding,
    "DequantizeLinear": _moved,
}
