"""Quantized nodes that OpenVINO cannot read, computes wrongly or runs in float; measured on its CPU plugin."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, channel_axis
from onnxshot.runtimes.base import Finding

_RECURRENT = ("LSTM", "GRU")
_MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LEAST_BLOCK = 32
_SIGNED = (TensorProto.INT4, TensorProto.INT8)
_WIDE = (TensorProto.INT16, TensorProto.UINT16)
_FLOAT_OPS = {
    "DynamicQuantizeLinear": "OpenVINO splits it into a dozen float ops",
    "MatMulInteger": "OpenVINO multiplies in float if the scale is known at run time only",
    "ConvInteger": "OpenVINO runs it in float",
}
_UNREADABLE = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearGlobalAveragePool", "QAttention", "QEmbedLayerNormalization", "QMoE",
        "QOrderedMatMul", "MatMulInteger16", "MatMulBnb4",
    }
)  # fmt: skip


def findings(model: Model) -> list[Finding]:
    """At most one finding per quantized node, in graph order."""
    found = []
    for _, node in model.walk():
        refusal = _refusal(model, node)
        reason = refusal or _left_in_float(model, node)
        if reason:
            found.append(Finding(node.label, node.op, reason, refused=bool(refusal)))
    return found


def asks_for_int8(node: Node) -> bool:
    """True for a Conv, ConvTranspose, Gemm or MatMul whose two factors come from a DequantizeLinear."""
    return node.op in _MULTIPLY and node.domain in STANDARD_DOMAINS and all(map(_dequantize, node.inputs[:2]))


def _refusal(model: Model, node: Node) -> str:
    """Why OpenVINO does not load the node, or computes it wrongly; empty if it does neither."""
    if node.domain not in STANDARD_DOMAINS:
        return f"OpenVINO cannot read {node.domain}.{node.op}" if node.op in _UNREADABLE else ""
    if node.op == "QLinearConv" and _size(node.inputs[4]) > 1:
        return "OpenVINO computes it wrongly with a scale per channel"  # SQNR of 12 dB, ONNX Runtime as reference
    if node.op == "QLinearMatMul" and _size(node.inputs[4]) > 1:
        return "OpenVINO cannot read it with a scale per channel"
    if node.op == "DequantizeLinear" and _is_ragged(node):
        return "OpenVINO cannot read blocks that do not divide the values"
    makers = [maker for tensor in node.inputs if (maker := _dequantize(tensor)) is not None]
    if node.op in _RECURRENT and len(makers) > 1 and makers[0] is _dequantize(node.inputs[0]):
        return "OpenVINO does not compile it with its input and its weights quantized"
    wide = node.op != "QuantizeLinear" and any(_kind(model, maker) in _WIDE for maker in makers)
    return "OpenVINO computes 16-bit values in float, and with errors of 8 bits and less" if wide else ""


def _left_in_float(model: Model, node: Node) -> str:
    if node.domain in STANDARD_DOMAINS and node.op in _FLOAT_OPS:
        return _FLOAT_OPS[node.op]
    if asks_for_int8(node):
        return _float_product(model, node)
    return next(filter(None, map(_slow_blocks, node.inputs)), "") if node.op in ("MatMul", "Gemm") else ""


def _slow_blocks(weight: Tensor) -> str:
    """Why OpenVINO multiplies in float by a weight that is dequantized in blocks; empty if it does not."""
    maker = _dequantize(weight)
    size = int(maker.attrs.get("block_size", 0)) if maker is not None else 0
    if maker is None or not size:
        return ""
    if size < _LEAST_BLOCK:
        return f"OpenVINO multiplies in float by blocks of {size}: it takes {_LEAST_BLOCK} and more as integers"
    signed = len(maker.inputs) > 2 and maker.inputs[2].name and _type_of(maker.inputs[0]) in _SIGNED
    return "OpenVINO multiplies in float by blocks of signed integers with a zero point" if signed else ""


def _type_of(tensor: Tensor) -> int:
    return weights.elem_type(tensor) if isinstance(tensor, Constant) else TensorProto.UNDEFINED


def _is_ragged(dequantize: Node) -> bool:
    """True for blocks along an axis whose size is no multiple of theirs."""
    size, stored = int(dequantize.attrs.get("block_size", 0)), dequantize.inputs[0]
    if not size or not isinstance(stored, Constant) or not stored.shape:
        return False
    return bool(stored.shape[int(dequantize.attrs.get("axis", 1)) % len(stored.shape)] % size)


def _float_product(model: Model, node: Node) -> str:
    """Why a product of two dequantized factors runs in float; empty if it runs in int8."""
    data, weight = (maker for tensor in node.inputs[:2] if (maker := _dequantize(tensor)) is not None)
    reason = _float_factors(model, data, weight) if _stored(weight) is None else _float_weight(model, node, weight)
    if not reason and node.op == "ConvTranspose" and _shifted(data):
        reason = "the zero point of its input is not 0"
    if not reason and node.op == "Conv" and _kind(model, data) == TensorProto.INT8 and _shifted(data):
        return "OpenVINO runs it in float on CPUs with AMX: its input is int8 with a zero point other than 0"
    return f"OpenVINO runs it in float: {reason}" if reason else ""


def _float_factors(model: Model, *factors: Node) -> str:
    plain = all(_kind(model, factor) == TensorProto.INT8 and not _shifted(factor) for factor in factors)
    return "" if plain else "it takes int8 with zero point 0 for a product of activations"


def _float_weight(model: Model, node: Node, dequantize: Node) -> str:
    kind, stored = _kind(model, dequantize), _stored(dequantize)
    if kind != TensorProto.INT8:
        return f"its weight is {TensorProto.DataType.Name(kind).lower()}"
    if _shifted(dequantize):
        return "the zero point of its weight is not 0"
    if stored is None or _size(dequantize.inputs[1]) == 1:
        return ""
    rank, axis = len(stored.shape), dequantize.attrs.get("axis", 1)
    return f"the scales of its weight are along axis {axis}" if axis % rank != channel_axis(node, 1, rank) else ""


def _dequantize(tensor: Tensor) -> Node | None:
    maker = edit.producer(tensor)
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def _kind(model: Model, dequantize: Node) -> int:
    """Integer type that a DequantizeLinear reads; the zero point's type if shape inference was not run."""
    quantize = edit.producer(dequantize.inputs[0])
    known = [dequantize.inputs[0], *dequantize.inputs[2:3], *(quantize.inputs[2:3] if quantize is not None else ())]
    stated = 0 if quantize is None else quantize.attrs.get("output_dtype", 0)
    return next((kind for tensor in known if (kind := model.elem_type(tensor))), stated or TensorProto.UINT8)


def _stored(dequantize: Node) -> Constant | None:
    """The constant behind a DequantizeLinear, even if a QuantizeLinear rounds it at run time; None for activations."""
    source = dequantize.inputs[0]
    maker = edit.producer(source)
    if maker is not None and maker.op == "QuantizeLinear":
        source = maker.inputs[0]
    return source if isinstance(source, Constant) else None


def _shifted(dequantize: Node) -> bool:
    """True if a zero point is not 0."""
    if len(dequantize.inputs) < 3 or not isinstance(dequantize.inputs[2], Constant):
        return False
    return bool(np.any(weights.read(dequantize.inputs[2])))


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) if isinstance(tensor, Constant) else 1
