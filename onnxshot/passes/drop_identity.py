"""Take out nodes that give their input out unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropIdentity:
    """Drop Identity, Dropout in inference, Cast to the same type, Concat of one, and idle ops.

    Idle are a Transpose, a Pad, a Relu of a Relu, a LeakyRelu with slope 1, a Flatten of two dimensions into the same.
    """

    name: str = "drop_identity"

    def run(self, model: Model) -> Change:
        """Drop; edits counts the nodes that went, skips name those whose two ends are both promised names."""
        change = Change()
        typed = {id(t) for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
        for graph, node in list(model.walk()):
            check = _CHECKS.get(node.op) if node.domain in STANDARD_DOMAINS else None
            if check is None:
                continue
            if node.op == "Cast" and not isinstance(node.inputs[0], Constant) and id(node.inputs[0]) not in typed:
                continue  # types are known by name, and a branch may use a name again
            reason = check(model, node)
            if reason is None and not edit.bypass(model, node, node.inputs[0]):
                # A branch must make its outputs itself: there, this is no refusal.
                reason = "its input and its output both have promised names" if graph is model.graph else ""
            if reason is None:
                change.edits += 1
            elif reason:
                change.skip(node, reason)
        return change


def _identity(model: Model, node: Node) -> str | None:
    return None


def _dropout(model: Model, node: Node) -> str | None:
    if any(t.name and (edit.consumers(t) or edit.is_output(model, t)) for t in node.outputs[1:]):
        return "its mask is used"
    if model.opset < 7 and not node.attrs.get("is_test", 0):
        return "it is in training mode"
    if len(node.inputs) > 2 and node.inputs[2].name:
        training = edit.constant_input(node, 2) if linear_ops.fixed(node.inputs[2]) else None
        if training is None or training.any():
            return "it may be in training mode"
    return None


def _cast(model: Model, node: Node) -> str | None:
    """'' where the type changes or is not known."""
    return None if model.elem_type(node.inputs[0]) == node.attrs.get("to") else ""


def _transpose(model: Model, node: Node) -> str | None:
    perm = node.attrs.get("perm")
    return None if perm is not None and list(perm) == list(range(len(perm))) else ""


def _pad(model: Model, node: Node) -> str | None:
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    if pads is None:
        if len(node.inputs) < 2 or not linear_ops.fixed(node.inputs[1]):
            return ""
        values = edit.constant_input(node, 1)
        pads = [] if values is None else values.reshape(-1).tolist()
    return "" if any(pads) else None


def _concat(model: Model, node: Node) -> str | None:
    return None if len(node.inputs) == 1 else ""


def _relu(model: Model, node: Node) -> str | None:
    maker = edit.producer(node.inputs[0])
    return None if maker is not None and maker.op == "Relu" and maker.domain in STANDARD_DOMAINS else ""


def _leaky_relu(model: Model, node: Node) -> str | None:
    return None if node.attrs.get("alpha", 0.01) == 1.0 else ""


def _flatten(model: Model, node: Node) -> str | None:
    return None if len(model.shape(node.inputs[0]) or ()) == 2 and node.attrs.get("axis", 1) in (1, -1) else ""


_CHECKS = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Pad": _pad,
    "Concat": _concat,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Flatten": _flatten,
}  # op -> None where the node does nothing, '' where it does something, else the reason it must stay
