"""Match groups of nodes that runtimes fuse (LayerNormalization, RMSNorm, Gelu), which other passes must not break."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.linear_ops import fixed


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A LayerNormalization over the last axis, written as several nodes.

    Attributes:
        x: the input.
        gamma: the scale, a constant.
        beta: the bias, a constant.
        epsilon: the value added to the variance.
        nodes: the nodes that compute it. The last one produces its output.
    """

    x: Tensor
    gamma: Tensor
    beta: Tensor
    epsilon: float
    nodes: tuple[Node, ...]


def made_by(tensor: Tensor, *ops: str) -> Node | None:
    """The node that produces the tensor, if it is one of these standard operators; else None."""
    node = edit.producer(tensor)
    return node if node is not None and node.op in ops and node.domain in STANDARD_DOMAINS else None


def with_constant(node: Node | None) -> tuple[Tensor, Tensor] | None:
    """(computed input, constant input) of a node with two inputs; None if it does not have one of each."""
    if node is None or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    if fixed(b) and not fixed(a):
        return a, b
    return (b, a) if fixed(a) and not fixed(b) else None


def scalar(tensor: Tensor) -> float | None:
    """The value of a float constant of shape [] or [1]; None for all other tensors."""
    if not fixed(tensor) or len(tensor.shape) > 1 or weights.size_bytes(tensor) > 8:
        return None
    values = weights.read(tensor)
    return float(values.reshape(())) if values.size == 1 and values.dtype.kind in "fV" else None


def runtime_patterns(model: Model) -> set[Node]:
    """Nodes of a norm or Gelu that folding could remove. Runtimes fuse such a group only if it is complete."""
    found: set[Node] = set()
    for _, node in model.walk():
        if any(user.op == "Erf" for out in node.outputs for user in edit.consumers(out)):
            found.add(node)
        pair = with_constant(node) if node.op in ("Mul", "Add") else None
        if pair is None:
            continue
        source = edit.producer(pair[0])
        if node.op == "Add":
            if source is not None and source in found and made_by(pair[0], "Mul") and _normed(source):
                found.add(node)
        elif _normed(node) or (source is not None and source.op == "Mul" and any(is_gate(t) for t in source.inputs)):
            found.add(node)
    return found


def _normed(node: Node) -> bool:
    """Whether the node is (..) / Sqrt(..) * gamma."""
    pair = with_constant(node)
    quotient = None if pair is None else made_by(pair[0], "Div")
    return quotient is not None and made_by(quotient.inputs[1], "Sqrt") is not None


def is_gate(tensor: Tensor) -> bool:
    """Whether the tensor is 1 + Erf(..) or 1 + Tanh(..), the gate of Gelu."""
    pair = with_constant(made_by(tensor, "Add"))
    return pair is not None and made_by(pair[0], "Erf", "Tanh") is not None


def layer_norm(model: Model, add: Node) -> LayerNorm | None:
    """Match (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * gamma + beta, ending in this Add; None if it differs."""
    shifted = with_constant(add) if add.op == "Add" and add.domain in STANDARD_DOMAINS else None
    mul = None if shifted is None else made_by(shifted[0], "Mul")
    scaled = with_constant(mul)
    div = None if scaled is None else made_by(scaled[0], "Div")
    if shifted is None or mul is None or scaled is None or div is None:
        return None
    centred, root = made_by(div.inputs[0], "Sub"), made_by(div.inputs[1], "Sqrt")
    plus = None if root is None else made_by(root.inputs[0], "Add")
    padded = with_constant(plus)
    variance = None if padded is None else _mean_over_last(model, made_by(padded[0], "ReduceMean"))
    epsilon = None if padded is None else scalar(padded[1])
    if centred is None or root is None or plus is None or variance is None or epsilon is None:
        return None
    square = made_by(variance.inputs[0], "Pow", "Mul")
    again = None if square is None else _squared(square)
    mean = _mean_over_last(model, made_by(centred.inputs[1], "ReduceMean"))
    if square is None or again is None or mean is None:
        return None
    if mean.inputs[0] is not centred.inputs[0] or list(again.inputs) != list(centred.inputs):
        return None
    nodes = dict.fromkeys((mean, centred, again, square, variance, plus, root, div, mul, add))
    return LayerNorm(centred.inputs[0], scaled[1], shifted[1], epsilon, tuple(nodes))


def _squared(square: Node) -> Node | None:
    """The Sub that a Pow(.., 2) or Mul(d, d) squares. Some exporters compute it twice."""
    if square.op == "Pow":
        return made_by(square.inputs[0], "Sub") if scalar(square.inputs[1]) == 2 else None
    return made_by(square.inputs[0], "Sub") if square.inputs[0] is square.inputs[1] else None


def _mean_over_last(model: Model, node: Node | None) -> Node | None:
    """The node, if it is a ReduceMean over the last axis alone with keepdims; else None."""
    if node is None or not node.attrs.get("keepdims", 1):
        return None
    axes = node.attrs.get("axes")  # an input from ReduceMean-18 on
    if axes is None:
        values = edit.constant_input(node, 1)
        axes = [] if values is None else np.asarray(values).tolist()
    shape = model.shape(node.inputs[0])
    last = [-1] if shape is None else [-1, len(shape) - 1]
    return node if len(axes) == 1 and axes[0] in last else None
