"""Decompose com.microsoft FusedConv, FusedGemm and FusedMatMul -> Conv, Gemm or MatMul, and what was fused with them.

ONNX Runtime fuses them with an activation, a sum, a transpose or a factor. Every rule returns an empty string if it
replaced the node, else the skip reason, with nothing changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, weights
from onnxshot.passes.linear_ops import fixed
from onnxshot.passes.node_writer import Writer, given, text
from onnxshot.passes.unfuse_norms import tanh_gelu

_LIMITS = ("min", "max")
_HARD_SWISH_SINCE = 14  # opset
ACTIVATIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": (("alpha", 0.01),),
    "ThresholdedRelu": (("alpha", 1.0),),
    "Elu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": (),
    "Selu": (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
    "Clip": ((_LIMITS[0], -3.4028234663852886e38), (_LIMITS[1], 3.4028234663852886e38)),
}
"""Activation of a fused operator -> its parameters and their defaults, in the order of `activation_params`."""


def unfuse_conv(model: Model, graph: Graph, node: Node) -> str:
    """Replace FusedConv, or a Conv of com.microsoft.nchwc that was converted to NCHW, by act(Conv(x, w, b) + z)."""
    activation = text(node, "activation")
    if activation and activation not in ACTIVATIONS:
        return f"its activation {activation!r} has no standard form here"
    write, z = Writer(model, graph, node), given(node, 3)
    while len(node.inputs) > 3:
        node.inputs.pop()
    params = _params(node, activation)
    node.op, node.domain = "Conv", None
    if z is not None:
        out, node.outputs[0] = node.outputs[0], Variable(write.fresh("Conv"))
        summed = write.op("Add", node.outputs[0], z, out=None if activation else out)
        if activation:
            _activate(write, summed, activation, params, out)
    elif activation:
        out, node.outputs[0] = node.outputs[0], Variable(write.fresh("Conv"))
        _activate(write, node.outputs[0], activation, params, out)
    return ""


def unfuse_gemm(model: Model, graph: Graph, node: Node) -> str:
    """Replace FusedGemm by act(Gemm(a, b, c))."""
    activation = text(node, "activation")
    if activation and activation not in ACTIVATIONS:
        return f"its activation {activation!r} has no standard form here"
    write, params = Writer(model, graph, node), _params(node, activation)
    node.op, node.domain = "Gemm", None
    if activation:
        out, node.outputs[0] = node.outputs[0], Variable(write.fresh("Gemm"))
        _activate(write, node.outputs[0], activation, params, out)
    return ""


def unfuse_matmul(model: Model, graph: Graph, node: Node) -> str:
    """Replace FusedMatMul, TransposeMatMul or FusedMatMulActivation by act(alpha * T(a) @ T(b)).

    A transpose of a weight is folded into it; so is alpha if one operand is a weight.
    """
    activation = text(node, "activation")
    if activation and activation not in ACTIVATIONS:
        return f"its activation {activation!r} has no standard form here"
    turns = [(bool(node.attrs.get(f"trans{s}", 0)), bool(node.attrs.get(f"transBatch{s}", 0))) for s in "AB"]
    ranks = [len(shape) if (shape := model.shape(t)) is not None else None for t in node.inputs[:2]]
    if any(any(turn) and rank is None for turn, rank in zip(turns, ranks, strict=True)):
        return "the rank of what it transposes is not known"
    write, params = Writer(model, graph, node), _params(node, activation)
    alpha = float(node.attrs.get("alpha", 1.0))
    for slot, (turn, rank) in enumerate(zip(turns, ranks, strict=True)):
        order = _order(rank, *turn) if rank is not None else []
        if order != list(range(len(order))):
            node.inputs[slot] = _transposed(write, node.inputs[slot], order)
    if alpha != 1.0:
        slot = next((i for i in (1, 0) if fixed(node.inputs[i])), 0)
        node.inputs[slot] = _times(write, node.inputs[slot], alpha)
    node.op, node.domain = "MatMul", None
    node.attrs.clear()
    if activation:
        out, node.outputs[0] = node.outputs[0], Variable(write.fresh("MatMul"))
        _activate(write, node.outputs[0], activation, params, out)
    return ""


def unfuse_gelu_product(model: Model, graph: Graph, node: Node) -> str:
    """Replace GemmFastGelu by FastGelu(x @ w, bias), with the FastGelu decomposed too."""
    write, bias = Writer(model, graph, node), given(node, 2)
    product = write.op("MatMul", node.inputs[0], node.inputs[1])
    if bias is not None:
        product = write.op("Add", product, bias)
    tanh_gelu(write, product, node.outputs[0])
    write.done()
    return ""


def _params(node: Node, activation: str) -> dict[str, float]:
    """Parameters of the fused activation; their attributes are removed from the node."""
    listed = list(node.attrs.pop("activation_params", ()))
    found = {}
    for i, (key, default) in enumerate(ACTIVATIONS.get(activation, ())):
        old = node.attrs.get("leaky_relu_alpha", default) if key == "alpha" else default
        found[key] = float(listed[i] if i < len(listed) else node.attrs.get(f"activation_{key}", old))
    for key in [k for k in node.attrs if k.startswith("activation") or k == "leaky_relu_alpha"]:
        del node.attrs[key]
    return found


def _activate(write: Writer, x: Tensor, activation: str, params: Mapping[str, Any], out: Tensor) -> None:
    """Add the activation, in the form that the opset has."""
    if activation == "Clip":
        low, high = (params[key] for key in _LIMITS)
        write.clip(x, low, high, out)
    elif activation == "HardSwish" and write.model.opset < _HARD_SWISH_SINCE:
        write.ops("Mul", [x, write.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)], [out])
    else:
        write.ops(activation, [x], [out], **params)


def _order(rank: int, last: bool, batch: bool) -> list[int]:
    """Permutation of an operand: `batch` moves the first dimension to the last but one; `last` swaps the last two."""
    order = [*range(1, rank - 1), 0, rank - 1] if batch and rank > 2 else list(range(rank))
    if last and rank > 1:
        order[-2], order[-1] = order[-1], order[-2]
    return order


def _transposed(write: Writer, x: Tensor, order: Sequence[int]) -> Tensor:
    """The tensor transposed: a constant if it is one, else the output of a Transpose."""
    if not fixed(x):
        return write.op("Transpose", x, perm=list(order))
    source = Constant(x.name, x._values)
    shape = tuple(source.shape[i] for i in order)
    return write.constant("turned", weights.ComputedValues(
        shape, weights.read(source).dtype, lambda: np.ascontiguousarray(weights.read(source).transpose(order))
    ))  # fmt: skip


def _times(write: Writer, x: Tensor, factor: float) -> Tensor:
    """The tensor times a factor: a constant if it is one, else the output of a Mul."""
    if not fixed(x):
        return write.op("Mul", x, write.scalar("alpha", factor, x))
    source = Constant(x.name, x._values)
    values = weights.read(source)
    scaled = (values.astype(np.float64) * factor).astype(values.dtype)
    return write.constant("scaled", scaled)
