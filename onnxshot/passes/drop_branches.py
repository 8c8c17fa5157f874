"""Remove residual branches: replace Add(x, branch) by x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxshot.graph import Model, edit, shape_inference
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropBranches:
    """Replace sums by one of their two operands, and remove the nodes that only the other operand needed.

    Edits count the sums that were replaced. Nothing is reported as skipped.

    Attributes:
        sums: Name of an Add's output -> name of the operand to remove.
    """

    sums: Mapping[str, str]
    name: str = "drop_branches"

    def run(self, model: Model) -> Change:
        """Replace the sums and infer shapes again."""
        change = Change()
        for add in [node for node in model.graph.nodes if node.outputs[0].name in self.sums]:
            removed = self.sums[add.outputs[0].name]
            if edit.bypass(model, add, next(t for t in add.inputs if t.name != removed)):
                change.edits += 1
        edit.remove_unused(model)
        shape_inference.infer(model)
        return change
