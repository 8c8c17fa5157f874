"""Remove nodes whose output equals their input, such as Identity, inference-mode Dropout and Cast to the same type."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.base import Change

_BOTH_ENDS = "its input and its output are both inputs or outputs of the model"


@dataclass(frozen=True, slots=True)
class DropIdentity:
    """Remove nodes that change nothing, in subgraphs too.

    Removed are: Identity; Dropout in inference mode; Cast to the type of its input; Concat of one tensor; Transpose
    with the identity permutation; Pad by zero; Relu of a Relu; LeakyRelu with slope 1; Flatten of a matrix at axis 1.

    Edits count the removed nodes. Skip reasons: "its mask is used", "it is in training mode" and "it may be in training
    mode" (Dropout); "its input and its output are both inputs or outputs of the model", whose names must stay.
    """

    name: str = "drop_identity"

    def run(self, model: Model) -> Change:
        """Remove the nodes."""
        change = Change()
        typed = {id(t) for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
        for graph, node in list(model.walk()):
            check = _CHECKS.get(node.op) if node.domain in STANDARD_DOMAINS else None
            if check is None:
                continue
            if node.op == "Cast" and not isinstance(node.inputs[0], Constant) and id(node.inputs[0]) not in typed:
                continue  # types are looked up by name, and a branch may reuse a name of the outer graph
            reason = check(model, node)
            if reason is None and not edit.bypass(model, node, node.inputs[0]):
                # A branch must compute its own outputs, so an Identity there is expected and not reported.
                reason = _BOTH_ENDS if graph is model.graph else ""
            if reason is None:
                change.edits += 1
            elif reason:
                change.skip(node, reason)
        return change


def _identity(model: Model, node: Node) -> str | None:
    return None


def _dropout(model: Model, node: Node) -> str | None:
    """Inference mode, and a mask that nothing reads. Dropout-12 has `training_mode` as its third input."""
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
    """Empty if the type changes or is unknown."""
    return None if model.elem_type(node.inputs[0]) == node.attrs.get("to") else ""


def _transpose(model: Model, node: Node) -> str | None:
    """A permutation that keeps the order."""
    perm = node.attrs.get("perm")
    return None if perm is not None and list(perm) == list(range(len(perm))) else ""


def _pad(model: Model, node: Node) -> str | None:
    """Pads that are all 0."""
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    if pads is None:
        if len(node.inputs) < 2 or not linear_ops.fixed(node.inputs[1]):
            return ""
        values = edit.constant_input(node, 1)
        pads = [] if values is None else values.reshape(-1).tolist()
    return "" if any(pads) else None


def _concat(model: Model, node: Node) -> str | None:
    """A single input."""
    return None if len(node.inputs) == 1 else ""


def _relu(model: Model, node: Node) -> str | None:
    """The output of another Relu as the input."""
    maker = edit.producer(node.inputs[0])
    return None if maker is not None and maker.op == "Relu" and maker.domain in STANDARD_DOMAINS else ""


def _leaky_relu(model: Model, node: Node) -> str | None:
    """A slope of 1."""
    return None if node.attrs.get("alpha", 0.01) == 1.0 else ""


def _flatten(model: Model, node: Node) -> str | None:
    """A matrix, at axis 1."""
    return None if len(model.shape(node.inputs[0]) or ()) == 2 and node.attrs.get("axis", 1) in (1, -1) else ""


# Checks of a node: None if it changes nothing, '' if it changes something, else the skip reason.
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
}
