"""Keep Softmax on the last axis: Transpose, Softmax, Transpose -> Transpose, Reshape, Softmax, Reshape, Transpose.

ONNX Runtime cancels the two Transposes by moving the Softmax to another axis, where its kernel runs on one thread and
copies the tensor: [1, 22, 22, 80] takes 23 us over the last axis and 216 us over axis 1. Reshapes to a matrix and back
prevent that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Variable, edit
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class IsolateSoftmax:
    """Add a Reshape before and after each Softmax-13 over the last axis between two Transposes, in the top-level graph.

    Edits count the Softmaxes. Skip reason: "more than one of its dimensions is dynamic": a Reshape cannot restore two.
    """

    name: str = "isolate_softmax"

    def run(self, model: Model) -> Change:
        """Insert the Reshapes."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op != "Softmax" or model.opset < 13 or not _between_transposes(model, node):
                continue
            shape = model.shape(node.outputs[0]) or model.shape(node.inputs[0])
            if shape is None or node.attrs.get("axis", -1) not in (-1, len(shape) - 1):
                continue
            back = [d if isinstance(d, int) and d > 0 else -1 for d in shape]
            if back.count(-1) > 1 or back[-1] == -1:
                change.skip(node, "more than one of its dimensions is dynamic")
                continue
            _isolate(model, node, back)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _between_transposes(model: Model, node: Node) -> bool:
    """Whether a Transpose makes the input and a Transpose alone reads the output."""
    maker = edit.producer(node.inputs[0])
    user = edit.only_consumer(model, node.outputs[0])
    return maker is not None and maker.op == "Transpose" and user is not None and user.op == "Transpose"


def _isolate(model: Model, node: Node, back: list[int]) -> None:
    """Add a Reshape to a matrix before the Softmax and one to `back` after it."""
    rows = edit.add_constant(model, node.label, "rows", np.array([-1, back[-1]]))
    shape = edit.add_constant(model, node.label, "shape", np.array(back))
    flat = edit.add_node(model, "Reshape", [node.inputs[0], rows], base=node.label, suffix="to_rows")
    out = node.outputs[0]
    node.inputs[0] = flat.outputs[0]
    node.outputs[0] = Variable(model.fresh(out.name, "rows"))
    node.attrs["axis"] = -1
    edit.add_node(model, "Reshape", [node.outputs[0], shape], base=node.label, suffix="from_rows", outputs=[out])
