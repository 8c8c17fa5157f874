"""Let what wants only the size of a dequantized tensor read the integers: no DequantizeLinear runs for that alone.

ONNX Runtime dequantizes the whole tensor for a Shape: a pose net ran at 1.47x of float with, and 1.73x without that.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.move_shapes import READS_SHAPE

_OF_ANY_TYPE = frozenset({"Expand", "Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that move values of any type: where only shapes are read behind them, they may move integers."""


@dataclass(frozen=True, slots=True)
class QuantizedShapes:
    """Point Shape and Size, and ops in front of them that nothing else reads, at the output of QuantizeLinear."""

    name: str = "quantized_shapes"

    def run(self, model: Model) -> Change:
        """Point them there; edits counts the readers."""
        change = Change()
        for dq in [node for node in model.graph.nodes if node.op == "DequantizeLinear"]:
            q = edit.producer(dq.inputs[0])
            if q is None or q.op != "QuantizeLinear":
                continue
            for user in edit.consumers(dq.outputs[0]):
                if user.inputs[0] is dq.outputs[0] and wants_shape(model, user):
                    user.inputs[0] = q.outputs[0]
                    rename_moved(model, user)
                    change.edits += 1
        return change


def wants_shape(model: Model, node: Node) -> bool:
    """Whether nothing of the node's result depends on the values that it reads."""
    if node.domain not in STANDARD_DOMAINS:
        return False
    if node.op in READS_SHAPE:
        return True
    if node.op not in _OF_ANY_TYPE or edit.is_output(model, node.outputs[0]):
        return False
    users = edit.consumers(node.outputs[0])
    return bool(users) and all(u.inputs[0] is node.outputs[0] and wants_shape(model, u) for u in users)


def rename_moved(model: Model, node: Node) -> None:
    """Give what is moved as values of another type, up to the Shapes, names of its own: types are known by name."""
    if node.op not in READS_SHAPE:
        edit.rename(model, node, "moved")
        for user in edit.consumers(node.outputs[0]):
            rename_moved(model, user)
