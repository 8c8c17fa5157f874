"""Leave out the zero points of Conv weights where all are 0: DequantizeLinear-13 takes them to be so.

Only of those: ONNX Runtime makes a QGemm of a Gemm whose weight has none, and up to 1.26 that one fails when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Model, edit
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropZeroPoints:
    """Take zero points out that say nothing. A byte a channel, and two names: up to 3 % of a small network's file."""

    name: str = "drop_zero_points"

    def run(self, model: Model) -> Change:
        """Take them out; edits counts the weights."""
        change = Change()
        for node in model.graph.nodes:
            zero = edit.constant_input(node, 2) if node.op == "DequantizeLinear" else None
            if zero is None or zero.any() or not isinstance(node.inputs[0], Constant):
                continue
            users = edit.consumers(node.outputs[0])
            if users and all(user.op == "Conv" and user.inputs[1] is node.outputs[0] for user in users):
                del node.inputs[2]
                change.edits += 1
        edit.remove_unused(model)
        return change
