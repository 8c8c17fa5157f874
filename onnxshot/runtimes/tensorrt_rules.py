"""Quantized nodes that TensorRT's ONNX parser and builder refuse, or run in float.

Each rule was observed in TensorRT-RTX 1.7, whose parser is that of TensorRT 11. The builder names no node, or a node of
its own making, so the rules are applied to the graph before it is called.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, channel_axis
from onnxshot.runtimes.base import Finding

OPSETS = range(9, 26)
"""The opsets that its documentation names."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPS = frozenset(
    ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
     "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat",
     "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax")
)  # fmt: skip
_TAKEN = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, getattr(TensorProto, "FLOAT4E2M1", -1))


def findings(model: Model) -> list[Finding]:
    """The quantized nodes that TensorRT refuses or runs in float, in graph order."""
    found = []
    if model.opset not in OPSETS:
        reason = f"the model has opset {model.opset}; TensorRT documents {OPSETS[0]} to {OPSETS[-1]}"
        found.append(Finding("the model", "opset", reason))
    for _, node in model.walk():
        refusal = _refusal(model, node)
        reason = refusal or _left_in_float(node)
        if reason:
            found.append(Finding(node.label, node.op, reason, refused=bool(refusal)))
    return found


def _refusal(model: Model, node: Node) -> str:
    """Why no engine can be built from the node, or only one that computes it wrongly; empty if one can."""
    if node.op in _INTEGER_OPS:
        return f"TensorRT does not import {node.op}: it takes integers between QuantizeLinear and DequantizeLinear only"
    if node.domain not in STANDARD_DOMAINS:
        return ""
    if node.op in _PAIR:
        return _refused_type(model, node) or _refused_zero_point(node)
    for tensor in node.inputs:
        if isinstance(tensor, Constant) and weights.elem_type(tensor) in _TAKEN:
            return f"it reads the quantized constant {tensor.name!r}, which only DequantizeLinear may"
    return ""


def _refused_type(model: Model, pair: Node) -> str:
    kind = _quantized_type(model, pair)
    if kind in _TAKEN or kind == TensorProto.UNDEFINED:
        return ""
    name = TensorProto.DataType.Name(kind).lower()
    if kind == TensorProto.INT32:
        return "TensorRT dequantizes no int32: a bias must stay float"
    if kind == TensorProto.UINT8 and (len(pair.inputs) < 3 or not pair.inputs[2].name):
        return "it has no zero point, so that ONNX makes it uint8, which TensorRT takes for int8"
    if kind == TensorProto.UINT8:
        return "TensorRT has no uint8: it refuses such weights and takes activations for int8"
    return f"TensorRT has no {name}"


def _quantized_type(model: Model, pair: Node) -> int:
    """ONNX type of the quantized side of a QuantizeLinear or DequantizeLinear; UNDEFINED if it is not known."""
    if pair.op == "DequantizeLinear":
        return model.elem_type(pair.inputs[0])
    zero_point = pair.inputs[2] if len(pair.inputs) > 2 and pair.inputs[2].name else None
    if zero_point is not None:
        stored = _stored(zero_point)
        return model.elem_type(zero_point) if stored is None else weights.elem_type(Constant("", stored))
    return int(pair.attrs.get("output_dtype", 0)) or TensorProto.UINT8


def _refused_zero_point(pair: Node) -> str:
    for slot, name in ((1, "scale"), (2, "zero point")):
        if slot >= len(pair.inputs) or not pair.inputs[slot].name:
            continue
        values = _stored(pair.inputs[slot])
        if values is None:
            return f"its {name} is computed at run time: TensorRT takes a constant one"
        if slot == 2 and np.any(values.astype(np.float32)):
            found = values.reshape(-1)[np.flatnonzero(values.astype(np.float32))[0]]
            return f"its zero point is {found}: TensorRT quantizes symmetrically, with zero point 0"
    return ""


def _stored(tensor: Tensor) -> NDArray[np.generic] | None:
    """Values of a constant, or of the output of a Constant node; None if they are computed."""
    if isinstance(tensor, Constant):
        return np.asarray(weights.read(tensor))
    maker = edit.producer(tensor)
    value = maker.attrs.get("value") if maker is not None and maker.op == "Constant" else None
    return np.asarray(numpy_helper.to_array(value.t)) if isinstance(value, AttributeProto) else None


# ---------------------------------------------------------------------- quantized nodes that run in float


def _left_in_float(node: Node) -> str:
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in STANDARD_DOMAINS:
        return ""
    makers = [_dequantizer(t) for t in node.inputs[:2]]
    if len(makers) < 2 or not any(makers):
        return ""
    if node.op == "ConvTranspose":
        return "TensorRT runs a quantized ConvTranspose in float"
    return next(filter(None, (_odd_weight(node, s, m) for s, m in enumerate(makers) if m is not None)), "") or (
        _lone_weight(makers) if not all(makers) else ""
    )


def _odd_weight(node: Node, slot: int, dequantize: Node) -> str:
    """Why the product is not computed with these quantized weights directly; empty if it is."""
    weight, scale = dequantize.inputs[:2]
    if not isinstance(weight, Constant) or not isinstance(scale, Constant):
        return ""
    rank, size = len(weight.shape), int(np.prod(scale.shape))
    axis = int(dequantize.attrs.get("axis", 1)) % max(rank, 1)
    block = int(dequantize.attrs.get("block_size", 0))
    if weights.elem_type(weight) == TensorProto.INT4:
        whole = not block or block == weight.shape[axis]
        return "int4 weights without blocks are dequantized before the product" if whole else ""
    if block:
        return "its 8-bit weight is in blocks: TensorRT dequantizes it before the product"
    wanted = channel_axis(node, slot, rank)
    if size == 1 or wanted is None or axis == wanted:
        return ""
    return f"its weight has scales along axis {axis}: TensorRT has int8 kernels for axis {wanted} only"


def _lone_weight(makers: list[Node | None]) -> str:
    dequantize = next(m for m in makers if m is not None)
    stored = dequantize.inputs[0]
    if isinstance(stored, Constant):
        four = weights.elem_type(stored) == TensorProto.INT4
        return "" if four else "its weight is quantized, its input is not: computed in float"
    return "one of its inputs is quantized, the other is not: computed in float"


def _dequantizer(tensor: Tensor) -> Node | None:
    """The DequantizeLinear that makes the tensor; None if something else does."""
    maker = edit.producer(tensor)
    return maker if maker is not None and maker.op == "DequantizeLinear" else None
