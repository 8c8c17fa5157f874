"""Decompose com.microsoft Attention -> MatMul, Add for query, key and value, then com.microsoft MultiHeadAttention.

The weights of the MatMuls can then be quantized. ONNX Runtime creates Attention only offline, so a decomposition into
standard operators would not be fused again when a model is loaded. MultiHeadAttention is Attention without the
projections.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.passes.linear_ops import fixed
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.unfuse_norms import given_output

_KEPT = ("num_heads", "mask_filter_value", "scale", "unidirectional")
_NAMES = ("query", "key", "value")


def unfuse_attention(model: Model, graph: Graph, node: Node) -> str:
    """Replace Attention by the projections x @ W + b of query, key and value, and MultiHeadAttention.

    Inputs of Attention: x [N, S, I], W [I, Q + K + V], b [Q + K + V], mask, past [2, N, heads, P, head], attention
    bias. Outputs: [N, S, V] and present [2, N, heads, P + S, head].

    Returns:
        Empty if done, else the skip reason.
    """
    reason = _refusal(model, node)
    if reason:
        return reason
    write, (x, weight), bias = Writer(model, graph, node), node.inputs[:2], given(node, 2)
    sizes = _sizes(node, int(weight.shape[1]))
    parts = []
    for name, start, size in zip(_NAMES, np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        product = write.op("MatMul", x, _part(write, weight, name, int(start), size))
        parts.append(product if bias is None else write.op("Add", product, _part(write, bias, name, int(start), size)))
    for part, size in zip(parts, sizes, strict=True):
        write.set_info(part, x, size)
    none, past, scores = Variable(""), given(node, 4), given(node, 5)
    inputs: list[Tensor] = [*parts, none, _mask(write, x, given(node, 3)), scores or none]
    if past is not None:
        inputs += [write.axes("Squeeze", half, 0) for half in write.split(past, [1, 1], 0)]
    while not inputs[-1].name:
        inputs.pop()
    outputs, present = [node.outputs[0]], given_output(node, 1)
    if present is not None:
        outputs += [Variable(write.fresh(f"present_{name}")) for name in _NAMES[1:]]
        write.op("Concat", *(write.axes("Unsqueeze", half, 0) for half in outputs[1:]), out=present, axis=0)
    attrs = {key: node.attrs[key] for key in _KEPT if key in node.attrs}
    write.ops("MultiHeadAttention", inputs, outputs, "com.microsoft", **attrs)
    write.set_info(node.outputs[0], x, sizes[2])
    write.done()
    model.require_domain("com.microsoft")
    return ""


def _refusal(model: Model, node: Node) -> str:
    """Skip reason; empty if the node can be decomposed."""
    bias = given(node, 2)
    if not fixed(node.inputs[1]) or (bias is not None and not fixed(bias)):
        return "its weight or its bias is not constant"
    if node.attrs.get("do_rotary", 0) or node.attrs.get("past_present_share_buffer", 0):
        return "it applies rotary embeddings, or shares a buffer between past and present"
    mask = given(node, 3)
    if mask is None:
        return ""
    shape, x_shape = model.shape(mask), model.shape(node.inputs[0])
    if shape is None or len(shape) not in (1, 2, 3):
        return "the dimensions of its mask are not known"
    counts = edit.producer(mask)
    known = shape and x_shape and shape[0] is not None and shape[0] == x_shape[0]
    if len(shape) == 1 and not known and (counts is None or counts.op not in ("ReduceSum", "EmbedLayerNormalization")):
        return "whether its mask holds sequence lengths is not known"
    lengths_and_past = len(shape) == 1 and given(node, 4) is not None
    return "its mask holds sequence lengths, and it has a past" if lengths_and_past else ""


def _mask(write: Writer, x: Tensor, mask: Tensor | None) -> Tensor:
    """The mask [N, S] or [N, S, T], made from sequence lengths [N], which MultiHeadAttention rejects on some CPUs."""
    if mask is None:
        return Variable("")
    shape = write.model.shape(mask)
    if shape is None or len(shape) != 1:
        return mask
    size = write.op("Gather", write.op("Shape", x), write.constant("one", np.array(1, np.int64)), axis=0)
    zero, step = (write.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("step", 1)))
    at = write.op("Cast", write.op("Range", zero, size, step), to=TensorProto.INT32)
    return write.op("Cast", write.op("Less", at, write.axes("Unsqueeze", mask, 1)), to=TensorProto.INT32)


def _sizes(node: Node, total: int) -> list[int]:
    """Number of columns of the weight for query, key and value."""
    stated = node.attrs.get("qkv_hidden_sizes")
    return [int(size) for size in stated] if stated else [total // 3] * 3


def _part(write: Writer, constant: Constant, name: str, start: int, size: int) -> Constant:
    """`size` columns of a weight, computed each time they are read, or values of a bias."""
    source = Constant(constant.name, constant._values)
    shape = (*source.shape[:-1], size)

    def cut() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.ascontiguousarray(weights.read(source)[..., start : start + size])

    if len(shape) == 1:
        return write.constant(f"{name}_bias", cut())
    return write.constant(f"{name}_weight", weights.ComputedValues(shape, weights.read(source).dtype, cut))
