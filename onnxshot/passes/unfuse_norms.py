"""Decompose com.microsoft SkipLayerNormalization, EmbedLayerNormalization and Gelu variants -> standard operators.

ONNX Runtime's transformer optimizer writes these operators. It fuses the standard operators again when it loads a
model, so nodes that stay float are as fast as before.

Every rule returns an empty string if it replaced the node, else the skip reason, with nothing changed.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Graph, Model, Node, Tensor, Variable
from onnxshot.passes.node_writer import Writer, given, is_read

_TANH_GELU = (0.7978845608028654, 0.044715)  # sqrt(2 / pi), and the factor of x^3: Hendrycks and Gimpel, 2016


def unfuse_skip_norm(model: Model, graph: Graph, node: Node) -> str:
    """Replace Skip(Simplified)LayerNormalization by Add and (Simplified)LayerNormalization: norm(x + skip + bias).

    Inputs: x [N, S, H]; skip [N, S, H], [1, S, H] or [S, H]; gamma [H]; beta [H], not of the simplified one; bias [H].
    The fourth output is the sum.
    """
    if is_read(model, node, 1) or is_read(model, node, 2):
        return "its mean or its variance is read"
    simple = node.op == "SkipSimplifiedLayerNormalization"
    write, sum_out = Writer(model, graph, node), given_output(node, 3)
    bias, beta = given(node, 3 if simple else 4), None if simple else given(node, 3)
    total = write.op("Add", node.inputs[0], node.inputs[1], out=sum_out if bias is None else None)
    if bias is not None:
        total = write.op("Add", total, bias, out=sum_out)
    inputs = [node.inputs[2]] if beta is None else [node.inputs[2], beta]
    op = "SimplifiedLayerNormalization" if simple else "LayerNormalization"
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    out = node.outputs[0]
    write.op(op, total, *inputs, out=out, axis=-1, epsilon=epsilon)
    write.done()
    return ""


def unfuse_embeddings(model: Model, graph: Graph, node: Node) -> str:
    """Replace EmbedLayerNormalization by Gather, Add, LayerNormalization.

    It computes norm(words[ids] + positions[0, 1, ...] + segments[segment_ids]). Outputs: the normalized sum, the number
    of unmasked words of each sample, and the sum.
    """
    mask = given(node, 7)
    if mask is None and is_read(model, node, 1):
        return "its mask index is read, and it has no mask"
    write = Writer(model, graph, node)
    ids, segment_ids, words, positions, segments, gamma, beta = (given(node, i) for i in range(7))
    assert ids is not None and words is not None and positions is not None and gamma is not None and beta is not None
    at = given(node, 8)
    total = write.op("Add", write.op("Gather", words, ids), write.op("Gather", positions, at or _positions(write, ids)))
    sum_out = given_output(node, 2)
    if segment_ids is not None and segments is not None:
        total = write.op("Add", total, write.op("Gather", segments, segment_ids), out=sum_out)
    elif sum_out is not None:
        write.op("Identity", total, out=sum_out)
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    write.op("LayerNormalization", total, gamma, beta, out=node.outputs[0], axis=-1, epsilon=epsilon)
    if mask is not None and is_read(model, node, 1):
        _count(write, mask, node.outputs[1])
    write.done()
    return ""


def _positions(write: Writer, ids: Tensor) -> Tensor:
    """Positions 0, 1, ..., S - 1 of ids [N, S], as [1, S]."""
    shape = write.model.shape(ids)
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int):
        return write.constant("positions", np.arange(shape[1], dtype=np.int64)[np.newaxis])
    size = write.op("Gather", write.op("Shape", ids), write.constant("one", np.array(1, np.int64)), axis=0)
    zero, step = (write.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("step", 1)))
    return write.axes("Unsqueeze", write.op("Range", zero, size, step), 0)


def _count(write: Writer, mask: Tensor, out: Tensor) -> None:
    """Compute the number of unmasked words of each sample, as int32."""
    whole = write.op("Cast", mask, to=TensorProto.INT32)
    if write.model.opset < 13:
        write.op("ReduceSum", whole, out=out, axes=[1], keepdims=0)
    else:
        write.op("ReduceSum", whole, write.ints("axes", 1), out=out, keepdims=0)


def unfuse_bias_gelu(model: Model, graph: Graph, node: Node) -> str:
    """Replace BiasGelu by Gelu(a + b)."""
    write = Writer(model, graph, node)
    _gelu(write, write.op("Add", node.inputs[0], node.inputs[1]), node.outputs[0])
    write.done()
    return ""


def unfuse_gelu(model: Model, graph: Graph, node: Node) -> str:
    """Replace com.microsoft Gelu, which is exact, by standard operators."""
    write = Writer(model, graph, node)
    _gelu(write, node.inputs[0], node.outputs[0])
    write.done()
    return ""


def unfuse_fast_gelu(model: Model, graph: Graph, node: Node) -> str:
    """Replace FastGelu by its formula on x + bias: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    write, x, bias = Writer(model, graph, node), node.inputs[0], given(node, 1)
    if bias is not None:
        x = write.op("Add", x, bias)
    tanh_gelu(write, x, node.outputs[0])
    write.done()
    return ""


def unfuse_quick_gelu(model: Model, graph: Graph, node: Node) -> str:
    """Replace QuickGelu by x * sigmoid(alpha * x)."""
    write, x, alpha = Writer(model, graph, node), node.inputs[0], float(node.attrs.get("alpha", 1.702))
    inner = x if alpha == 1.0 else write.op("Mul", x, write.scalar("alpha", alpha, x))
    write.op("Mul", x, write.op("Sigmoid", inner), out=node.outputs[0])
    write.done()
    return ""


def unfuse_bias_add(model: Model, graph: Graph, node: Node) -> str:
    """Replace BiasAdd by x + bias + skip."""
    write = Writer(model, graph, node)
    write.op("Add", write.op("Add", node.inputs[0], node.inputs[1]), node.inputs[2], out=node.outputs[0])
    write.done()
    return ""


def unfuse_bias_split_gelu(model: Model, graph: Graph, node: Node) -> str:
    """Replace BiasSplitGelu by a * Gelu(b), where a and b are the halves of x + bias along the last axis."""
    shape = model.shape(node.inputs[1])
    if not shape or not isinstance(shape[-1], int):
        return "the size of the axis that it splits is not known"
    write, half = Writer(model, graph, node), shape[-1] // 2
    rank = len(model.shape(node.inputs[0]) or (0, 0, 0))
    left, right = write.split(write.op("Add", node.inputs[0], node.inputs[1]), [half, half], rank - 1)
    write.op("Mul", left, _gelu(write, right, Variable(write.fresh("Gelu"))), out=node.outputs[0])
    write.done()
    return ""


def _gelu(write: Writer, x: Tensor, out: Tensor) -> Tensor:
    """Add Gelu-20, or before opset 20 the form with Erf that runtimes fuse. Returns its output."""
    if write.model.opset >= 20:
        return write.op("Gelu", x, out=out)
    erf = write.op("Erf", write.op("Div", x, write.scalar("root", math.sqrt(2.0), x)))
    gate = write.op("Add", erf, write.scalar("one", 1.0, x))
    return write.op("Mul", write.op("Mul", x, gate), write.scalar("half", 0.5, x), out=out)


def tanh_gelu(write: Writer, x: Tensor, out: Tensor) -> None:
    """Add Gelu-20 approximated by tanh, or before opset 20 the form that runtimes fuse."""
    if write.model.opset >= 20:
        write.op("Gelu", x, out=out, approximate="tanh")
        return
    root, cubic = (write.scalar(name, value, x) for name, value in zip(("root", "cubic"), _TANH_GELU, strict=True))
    cube = write.op("Mul", write.op("Pow", x, write.scalar("three", 3.0, x)), cubic)
    tanh = write.op("Tanh", write.op("Mul", write.op("Add", x, cube), root))
    gate = write.op("Add", tanh, write.scalar("one", 1.0, x))
    write.op("Mul", write.op("Mul", x, write.scalar("half", 0.5, x)), gate, out=out)


def given_output(node: Node, slot: int) -> Tensor | None:
    """An optional output; None if it is left out."""
    return node.outputs[slot] if slot < len(node.outputs) and node.outputs[slot].name else None
