"""Restore the float form of integer products: MatMulInteger, ConvInteger and matrix products of ONNX Runtime."""

from __future__ import annotations

import numpy as np

from onnxshot.graph import Constant, Node, Tensor, Variable, edit, weights
from onnxshot.maths.dequantize_stored import dequantize_blocks, dequantize_channels
from onnxshot.maths.int4_packing import unpack_bits
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
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.strip_qdq import fits

_FLOAT_OPS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def integer_product(write: Writer) -> Made:
    """DynamicQuantizeLinear or QuantizeLinear -> MatMulInteger or ConvInteger -> Cast -> Mul(scales) -> MatMul or Conv.

    Raises:
        Unsupported: the integer sums are used in another way.
    """
    node, model = write.node, write.model
    x, computed, stored_scale = float_input(write, 0, None, 2)
    pending = [computed] if computed is not None else []
    factor: Array = np.ones(()) if stored_scale is None else 1 / stored_scale.astype(np.float64)
    if isinstance(node.inputs[1], Constant):
        q, zero = required(node, 1), constant_values(node, 3)
        words = str(q.dtype)
    else:
        other, scale, found = float_input(write, 1, None, 3)
        pending += [scale] if scale is not None else []
        factor = factor if found is None else factor / found.astype(np.float64)
        q, zero, words = None, None, "uint8"
    cast = edit.only_consumer(model, node.outputs[0])
    if cast is None or cast.op != "Cast":
        raise Unsupported("its integer result is not cast to float")
    last, gone = cast, list[Node]()
    while pending:
        user = edit.only_consumer(model, last.outputs[0])
        if user is None or user.op != "Mul":
            raise Unsupported("its result is not multiplied by its scales")
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
    """Remove the factors of a tensor of scales from `pending`; return the product of its constant factors."""
    at = next((i for i, tensor in enumerate(pending) if tensor is scales), None)
    if at is not None:
        del pending[at]
        return np.ones(())
    if isinstance(scales, Constant):
        return np.asarray(weights.read(scales), np.float64)
    maker = edit.producer(scales)
    if maker is None or maker.op != "Mul":
        raise Unsupported("its result is multiplied by something other than its scales")
    return _taken(maker.inputs[0], pending) * _taken(maker.inputs[1], pending)


def _channel_factor(op: str, q: Array, factor: Array) -> Array | None:
    """The factor as [1] or as one value per output channel of the weight q; None if it is neither."""
    if factor.size == 1:
        return factor.reshape(1)
    if op == "MatMul":
        return factor.reshape(-1) if factor.shape[-1] == factor.size == q.shape[-1] else None
    spatial = q.ndim - 2
    fitting = factor.ndim > spatial and factor.shape[factor.ndim - spatial - 1] == factor.size == q.shape[0]
    return factor.reshape(-1) if fitting else None


def _centred(write: Writer, q: Array, zero: Array | None, channels: Array | None) -> Constant:
    """(q - zero) * channels in float32, for scalars or one value per output channel."""
    node = write.node
    axis = q.ndim - 1 if node.op == "MatMulInteger" else 0
    scale = np.ones(1, np.float32) if channels is None else channels.astype(np.float32)
    flat = None if zero is None else zero.reshape(-1)
    if not fits(q, scale, flat, axis):
        raise Unsupported("its zero points do not fit its weight")
    return lazy_constant(
        write, node.inputs[1], q.shape, np.dtype(np.float32),
        lambda q: dequantize_channels(q, scale, flat, axis), scale, flat,
    )  # fmt: skip


def _with_bias(write: Writer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Node:
    """Replace the node with a MatMul, followed by an Add of the bias if there is one."""
    out = write.node.outputs[0]
    product = out if bias is None else Variable(write.fresh("MatMul"))
    made = write.ops("MatMul", [x, weight], [product])
    if bias is not None:
        write.op("Add", product, bias, out=out)
    write.done()
    return made


def dynamic_matmul(write: Writer) -> Made:
    """com.microsoft.DynamicQuantizeMatMul(a, B, B_scale, B_zero_point, bias) -> MatMul, Add."""
    kind = required(write.node, 1).dtype
    weight = float_weight(write, 1, 2, 3)
    return _with_bias(write, write.node.inputs[0], weight, given(write.node, 4)), f"dynamic uint8 x {kind}"


def matmul_to_float(write: Writer) -> Made:
    """com.microsoft.MatMulIntegerToFloat(a, B, scales of both, zero points of both, bias) -> MatMul, Add."""
    kind = required(write.node, 1).dtype
    x, computed, _ = float_input(write, 0, 2, 4)
    weight, how = float_weight(write, 1, 3, 5), "static" if computed is None else "dynamic"
    return _with_bias(write, x, weight, given(write.node, 6)), f"{how} uint8 x {kind}"


def block_matmul(write: Writer) -> Made:
    """com.microsoft.MatMulNBits -> MatMul, Add.

    Inputs: a [.., K], packed B [N, blocks, bytes], scales [N, blocks], zero points (packed uint8, or floats shaped like
    the scales), group indices, bias.
    """
    node = write.node
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs["block_size"])
    rows, columns = int(node.attrs["N"]), int(node.attrs["K"])
    scale, zeros = required(node, 2), constant_values(node, 3)
    if bits not in (2, 4, 8) or given(node, 4) is not None or node.attrs.get("weight_prepacked", 0):
        raise Unsupported("its weight is stored in an unsupported form")
    blocks, stored_size = -(-columns // max(block, 1)), required(node, 1).size
    if block < 1 or scale.size != rows * blocks or stored_size * 8 != rows * blocks * block * bits:
        raise Unsupported("its scales do not fit its weight")
    scale = scale.reshape(rows, blocks)
    zero: Array | float = float(1 << (bits - 1))
    if zeros is not None:
        packed = zeros.dtype == np.uint8
        zero = unpack_bits(zeros.reshape(rows, -1), bits)[:, :blocks] if packed else zeros.reshape(rows, blocks)

    def compute(stored: Array) -> Array:
        integers = unpack_bits(stored.reshape(rows, -1), bits)[:, :columns]
        return np.ascontiguousarray(dequantize_blocks(integers, scale, zero, 1, block).T)

    weight = lazy_constant(write, node.inputs[1], (columns, rows), scale.dtype, compute, scale, zero, bits, block)
    return _with_bias(write, node.inputs[0], weight, given(node, 5)), f"weights {bits} bits"
