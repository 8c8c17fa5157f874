"""Give operators on integers their float form back, where their scales are taken at run time or stored with weights.

Weights come back as the values that their integers stand for; the rounding of activations is taken out. Operators that
stand between QuantizeLinear and DequantizeLinear are those of qoperator_to_qdq.py, pairs of them those of strip_qdq.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import moves_exactly
from onnxshot.maths.dequantize_stored import dequantize_blocks, dequantize_channels, fits_blocks
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.passes.base import Change
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.strip_qdq import Restored, fits, values_key

Array = NDArray[Any]
_FLOAT_OPS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_LAZY_BYTES = 1 << 24  # larger weights are computed each time they are read, and never held
_NOT_CONSTANT = "its weight, scale or zero point is computed at run time"
_SCALES = 8  # input slot of DynamicQuantizeLSTM: scale and zero point of W, then of R


@dataclass(frozen=True, slots=True)
class IntegerOpsToFloat:
    """Restore the operators of RULES. `precision`: what each node that was made was before, by its label."""

    precision: dict[str, str] = field(default_factory=dict)
    restored: Restored = field(default_factory=dict)
    name: str = "integer_ops_to_float"

    def run(self, model: Model) -> Change:
        """Restore them; edits counts the operators, skips name those that stay."""
        change = Change()
        for graph, node in list(model.walk()):
            rule = RULES.get(node.op)
            if rule is None or not node.outputs:
                continue
            try:
                made, words = rule(Writer(model, graph, node, self.restored))
            except _Stays as stays:
                if stays.reason:
                    change.skip(node, stays.reason)
                continue
            self.precision[made.label] = words
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


class _Stays(Exception):  # not an error: the reason for which an operator is left as it is; empty where it is none
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Made = tuple[Node, str]


# ---------------------------------------------------------------------- operands


def _values(node: Node, slot: int) -> Array | None:
    """A constant input; None where it is left out. Raises _Stays where it is computed."""
    tensor = given(node, slot)
    if tensor is not None and not isinstance(tensor, Constant):
        raise _Stays(_NOT_CONSTANT)
    return edit.constant_input(node, slot) if tensor is not None else None


def _needed(node: Node, slot: int) -> Array:
    found = _values(node, slot)
    if found is None:
        raise _Stays(_NOT_CONSTANT)
    return found


def _weight(write: Writer, slot: int, scale: int, zero: int, *, axis: int = -1) -> Constant:
    """The float values of a stored operand, with a scale for all or for each index of the axis."""
    node = write.node
    q, s, z = _needed(node, slot), _needed(node, scale), _values(node, zero)
    axis %= max(q.ndim, 1)
    if not fits(q, s.reshape(-1), None if z is None else z.reshape(-1), axis):
        raise _Stays("its scales do not fit its weight")
    flat = None if z is None else z.reshape(-1)
    scale_values = s.reshape(-1)
    return _stored(
        write, node.inputs[slot], q.shape, s.dtype, lambda q: dequantize_channels(q, scale_values, flat, axis),
        scale_values, flat, axis,
    )  # fmt: skip


def _stored(
    write: Writer,
    constant: Tensor,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    compute: Callable[[Array], Array],
    *parts: Array | float | None,
) -> Constant:
    """The constant of what `compute` makes of a stored one; computed whenever it is read where it is large.

    parts: what `compute` takes besides. Operators of a kind that read the same integers and parts share the constant.
    """
    key = (constant, write.node.op, *shape, *values_key(*parts))
    if key in write.restored:
        return write.restored[key]
    source = Constant(constant.name, constant._values)

    def made() -> Array:
        return compute(weights.read(source))

    large = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > _LAZY_BYTES
    values = weights.ComputedValues(tuple(int(d) for d in shape), dtype, made) if large else made()
    write.restored[key] = edit.add_constant(write.model, constant.name, "float", values)
    return write.restored[key]


def _data(write: Writer, slot: int, scale: int | None, zero: int) -> tuple[Tensor, Tensor | None, Array | None]:
    """The float tensor that an operand was quantized from; its scale, where it is computed, and where it is stored."""
    node = write.node
    maker, z = edit.producer(node.inputs[slot]), given(node, zero)
    s = None if scale is None else given(node, scale)
    if maker is not None and maker.op == "DynamicQuantizeLinear":
        if z is not maker.outputs[2] or (s is not None and s is not maker.outputs[1]):
            raise _Stays("its scale is not that of the tensor that it reads")
        return maker.inputs[0], maker.outputs[1], None
    if maker is None or maker.op != "QuantizeLinear":
        raise _Stays("what it reads is quantized elsewhere")
    known = [edit.constant_input(maker, 1), edit.constant_input(maker, 2)]
    mine = [known[0] if s is None else _values(node, scale or 0), _values(node, zero)]
    ours, theirs = (tuple(0 if v is None else v.reshape(-1).tolist() for v in pair) for pair in (known, mine))
    same = all(a == b or (a in (0, [0]) and b in (0, [0])) for a, b in zip(ours, theirs, strict=True))
    if known[0] is None or known[0].size != 1 or not same:
        raise _Stays("its scale is not that of the tensor that it reads")
    pair = [maker.outputs[0], *maker.inputs[1:3]]
    return write.op("DequantizeLinear", *pair), None, known[0].reshape(())


# ---------------------------------------------------------------------- products


def _product(write: Writer) -> Made:
    """MatMulInteger and ConvInteger behind a quantizer, and in front of Cast and Mul by all scales."""
    node, model = write.node, write.model
    x, computed, stored_scale = _data(write, 0, None, 2)
    pending = [computed] if computed is not None else []
    factor: Array = np.ones(()) if stored_scale is None else 1 / stored_scale.astype(np.float64)
    if isinstance(node.inputs[1], Constant):
        q, zero = _needed(node, 1), _values(node, 3)
        words = str(q.dtype)
    else:
        other, scale, found = _data(write, 1, None, 3)
        pending += [scale] if scale is not None else []
        factor = factor if found is None else factor / found.astype(np.float64)
        q, zero, words = None, None, "uint8"
    cast = edit.only_consumer(model, node.outputs[0])
    if cast is None or cast.op != "Cast":
        raise _Stays("its sums are read as integers")
    last, gone = cast, list[Node]()
    while pending:
        user = edit.only_consumer(model, last.outputs[0])
        if user is None or user.op != "Mul":
            raise _Stays("its sums are not multiplied by their scales")
        scales = next(t for t in user.inputs if t is not last.outputs[0])
        factor = factor * _taken(scales, pending)
        last = user
        gone.append(user)
    out, op = last.outputs[0], _FLOAT_OPS[node.op]
    if q is None:
        right: Tensor = other
    else:
        channels = _channel_factor(op, q, factor)
        factor = factor if channels is None else np.ones(())
        right = _centred(write, q, zero, channels)
    edit.remove(model, gone or [cast])
    whole = factor.size == 1 and float(factor.reshape(())) == 1.0
    product = out if whole else Variable(write.fresh(op))
    made = write.ops(op, [x, right], [product], **node.attrs)
    if not whole:
        write.op("Mul", product, write.constant("scale", factor.astype(np.float32)), out=out)
    return made, f"{'dynamic' if computed is not None else 'static'} uint8 x {words}"


def _taken(scales: Tensor, pending: list[Tensor]) -> Array:
    """Take the scales that a tensor is a product of from those that are waited for; the constants in it."""
    at = next((i for i, tensor in enumerate(pending) if tensor is scales), None)
    if at is not None:
        del pending[at]
        return np.ones(())
    if isinstance(scales, Constant):
        return np.asarray(weights.read(scales), np.float64)
    maker = edit.producer(scales)
    if maker is None or maker.op != "Mul":
        raise _Stays("its sums are multiplied by something else than their scales")
    return _taken(maker.inputs[0], pending) * _taken(maker.inputs[1], pending)


def _channel_factor(op: str, q: Array, factor: Array) -> Array | None:
    """The factor as one value, or one for each output channel of the weight; None where it is neither."""
    if factor.size == 1:
        return factor.reshape(1)
    if op == "MatMul":
        return factor.reshape(-1) if factor.shape[-1] == factor.size == q.shape[-1] else None
    spatial = q.ndim - 2
    fitting = factor.ndim > spatial and factor.shape[factor.ndim - spatial - 1] == factor.size == q.shape[0]
    return factor.reshape(-1) if fitting else None


def _centred(write: Writer, q: Array, zero: Array | None, channels: Array | None) -> Constant:
    """(q - zero) * channels in float32; both for all, or along the output channels."""
    node = write.node
    axis = q.ndim - 1 if node.op == "MatMulInteger" else 0
    scale = np.ones(1, np.float32) if channels is None else channels.astype(np.float32)
    flat = None if zero is None else zero.reshape(-1)
    if not fits(q, scale, flat, axis):
        raise _Stays("its zero points do not fit its weight")
    return _stored(
        write, node.inputs[1], q.shape, np.dtype(np.float32),
        lambda q: dequantize_channels(q, scale, flat, axis), scale, flat,
    )  # fmt: skip


def _with_bias(write: Writer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Node:
    """MatMul, and an Add of the bias behind it, in place of the node."""
    out = write.node.outputs[0]
    product = out if bias is None else Variable(write.fresh("MatMul"))
    made = write.ops("MatMul", [x, weight], [product])
    if bias is not None:
        write.op("Add", product, bias, out=out)
    write.done()
    return made


def _dynamic_matmul(write: Writer) -> Made:
    """DynamicQuantizeMatMul: a, B, scale and zero point of B, bias."""
    kind = _needed(write.node, 1).dtype
    weight = _weight(write, 1, 2, 3)
    return _with_bias(write, write.node.inputs[0], weight, given(write.node, 4)), f"dynamic uint8 x {kind}"


def _matmul_to_float(write: Writer) -> Made:
    """MatMulIntegerToFloat: a, B, their scales, their zero points, bias."""
    kind = _needed(write.node, 1).dtype
    x, computed, _ = _data(write, 0, 2, 4)
    weight, how = _weight(write, 1, 3, 5), "static" if computed is None else "dynamic"
    return _with_bias(write, x, weight, given(write.node, 6)), f"{how} uint8 x {kind}"


def _block_matmul(write: Writer) -> Made:
    """MatMulNBits: a, B [N, blocks, bytes], scales [N, blocks], zero points; packed, or as scales are."""
    node = write.node
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs["block_size"])
    rows, columns = int(node.attrs["N"]), int(node.attrs["K"])
    scale, zeros = _needed(node, 2), _values(node, 3)
    if bits not in (2, 4, 8) or given(node, 4) is not None or node.attrs.get("weight_prepacked", 0):
        raise _Stays("its weight is stored in a form that is not known here")
    blocks, stored_size = -(-columns // max(block, 1)), _needed(node, 1).size
    if block < 1 or scale.size != rows * blocks or stored_size * 8 != rows * blocks * block * bits:
        raise _Stays("its scales do not fit its weight")
    scale = scale.reshape(rows, blocks)
    zero: Array | float = float(1 << (bits - 1))
    if zeros is not None:
        packed = zeros.dtype == np.uint8
        zero = unpack_bits(zeros.reshape(rows, -1), bits)[:, :blocks] if packed else zeros.reshape(rows, blocks)

    def compute(stored: Array) -> Array:
        integers = unpack_bits(stored.reshape(rows, -1), bits)[:, :columns]
        return np.ascontiguousarray(dequantize_blocks(integers, scale, zero, 1, block).T)

    weight = _stored(write, node.inputs[1], (columns, rows), scale.dtype, compute, scale, zero, bits, block)
    return _with_bias(write, node.inputs[0], weight, given(node, 5)), f"weights {bits} bits"


# ---------------------------------------------------------------------- others


def _lstm(write: Writer) -> Made:
    """DynamicQuantizeLSTM has W and R as [directions, inputs, 4H], LSTM as [directions, 4H, inputs]."""
    node = write.node
    real: list[Tensor] = []
    for slot, first in ((1, _SCALES), (2, _SCALES + 2)):
        stored, scale, zero = _needed(node, slot), _needed(node, first), _values(node, first + 1)
        shift, step = _by_direction(0 if zero is None else zero), _by_direction(scale)

        def compute(q: Array, shift: Array = shift, step: Array = step) -> Array:
            return np.ascontiguousarray(((q.astype(np.float32) - shift) * step).transpose(0, 2, 1))

        shape = (stored.shape[0], stored.shape[2], stored.shape[1])
        real.append(_stored(write, node.inputs[slot], shape, np.dtype(np.float32), compute, shift, step))
    kind = _needed(node, 2).dtype
    x, rest = node.inputs[0], list(node.inputs[3:_SCALES])
    while rest and not rest[-1].name:
        rest.pop()
    node.inputs.clear()
    node.inputs.extend([x, *real, *rest])
    node.op, node.domain = "LSTM", None
    return node, f"dynamic uint8 x {kind}"


def _by_direction(values: Any) -> NDArray[np.float32]:
    """Scales or zero points [], [1], [directions] or [directions, 4H], to be held against [directions, inputs, 4H]."""
    found = np.asarray(values, np.float32)
    return found.reshape(-1, 1, found.shape[1] if found.ndim > 1 else 1)


def _attention(write: Writer) -> Made:
    """QAttention: x, W, bias, scales of x and W, mask, zero points of x and W, past."""
    node = write.node
    kind = _needed(node, 1).dtype
    x, computed, _ = _data(write, 0, 3, 6)
    weight, none = _weight(write, 1, 4, 7), Variable("")
    inputs = [x, weight, node.inputs[2], given(node, 5) or none, given(node, 8) or none]
    while not inputs[-1].name:
        inputs.pop()
    outputs = list(node.outputs)
    made = write.ops("Attention", inputs, outputs, node.domain, **node.attrs)
    write.done()
    return made, f"{'static' if computed is None else 'dynamic'} uint8 x {kind}"


def _embeddings(write: Writer) -> Made:
    """QEmbedLayerNormalization: ids, segments, three tables, gamma, beta, mask, their scales, their zero points."""
    node, none = write.node, Variable("")
    kind = _needed(node, 2).dtype
    tables: list[Tensor] = [
        _weight(write, 2 + i, 8 + i, 13 + i) if given(node, 2 + i) is not None else none for i in range(5)
    ]
    inputs = [node.inputs[0], given(node, 1) or none, *tables, given(node, 7) or none]
    while not inputs[-1].name:
        inputs.pop()
    made = write.ops("EmbedLayerNormalization", inputs, list(node.outputs), node.domain, **node.attrs)
    write.done()
    return made, f"weights {kind}"


def _block_gather(write: Writer) -> Made:
    """GatherBlockQuantized: table, ids, scales, zero points; bytes are packed along the last axis."""
    node = write.node
    stored, scale, zeros = _needed(node, 0), _needed(node, 2), _values(node, 3)
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs.get("block_size", 128))
    axis, picked = int(node.attrs.get("quantize_axis", 1)), int(node.attrs.get("gather_axis", 0))
    packed = stored.dtype == np.uint8
    if stored.dtype.kind == "f" or stored.dtype.name.startswith("float") or not block:
        raise _Stays("its table is stored in a form that is not known here")
    shape = [*stored.shape[:-1], stored.shape[-1] * 8 // bits] if packed else list(stored.shape)
    axis %= len(shape)
    zero: Array | float = float(1 << (bits - 1)) if packed else 0.0
    if zeros is not None:
        zero = unpack_bits(zeros, bits)[..., : scale.shape[-1]] if packed else zeros.astype(np.float32)

    if not fits_blocks(shape, scale.shape, axis, block):
        raise _Stays("its scales do not fit its table")

    def compute(q: Array) -> Array:
        return dequantize_blocks(unpack_bits(q, bits) if packed else q, scale, zero, axis, block)

    table = _stored(write, node.inputs[0], shape, scale.dtype, compute, scale, zero, bits, block, axis)
    made = write.ops("Gather", [table, node.inputs[1]], [node.outputs[0]], axis=picked)
    write.done()
    return made, f"weights {bits} bits"


def _embedding(write: Writer) -> Made:
    """Gather(q [V, D], ids) -> Cast -> Mul(Gather(scale [V, 1], ids))."""
    node, model = write.node, write.model
    stored = edit.constant_input(node, 0)
    if stored is None or stored.dtype.kind not in "iu":
        raise _Stays("")
    cast = edit.only_consumer(model, node.outputs[0])
    rescale = edit.only_consumer(model, cast.outputs[0]) if cast is not None and cast.op == "Cast" else None
    if rescale is None or rescale.op != "Mul":
        raise _Stays("")
    makers = [edit.producer(tensor) for tensor in rescale.inputs]
    others = [m for m in makers if m is not None and m.op == "Gather" and m is not node]
    column = edit.constant_input(others[0], 0) if others else None
    if column is None or column.dtype.kind != "f" or others[0].inputs[1] is not node.inputs[1]:
        raise _Stays("")
    scale, out = column, rescale.outputs[0]
    table = _stored(
        write, node.inputs[0], stored.shape, scale.dtype, lambda q: (q * scale).astype(scale.dtype), scale
    )
    edit.remove(model, [rescale])
    return write.ops("Gather", [table, node.inputs[1]], [out], **node.attrs), f"weights {stored.dtype}"


def _moved(write: Writer) -> Made:
    """DequantizeLinear of what DynamicQuantizeLinear made, or of integers that other operators have moved since."""
    node, model = write.node, write.model
    maker = edit.producer(node.inputs[0])
    if maker is not None and maker.op == "DynamicQuantizeLinear":
        x, _, _ = _data(write, 0, 1, 2)
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
        raise _Stays("")
    out, kind = node.outputs[0], str(weights.read(source).dtype) if isinstance(source, Constant) else "uint8"
    moves[-1].inputs[0] = write.op("DequantizeLinear", source, *node.inputs[1:])
    write.done()
    for move in moves:
        write.graph.value_infos.pop(move.outputs[0].name, None)  # it holds floats now
    moves[0].outputs[0] = out
    return moves[-1], f"weights {kind}"


RULES: dict[str, Callable[[Writer], Made]] = {
    "MatMulInteger": _product,
    "ConvInteger": _product,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "MatMulNBits": _block_matmul,
    "DynamicQuantizeLSTM": _lstm,
    "QAttention": _attention,
    "QEmbedLayerNormalization": _embeddings,
    "GatherBlockQuantized": _block_gather,
    "Gather": _embedding,
    "DequantizeLinear": _moved,
}
