"""Give each node a unique name, which plans, reports and ONNX Runtime use to identify it."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class NameNodes:
    """Name nodes without a name, or with the name of an earlier node, after their operator and first output.

    Edits count the renamed nodes. Nothing is skipped.
    """

    name: str = "name_nodes"

    def run(self, model: Model) -> Change:
        """Name the nodes, in subgraphs too."""
        change = Change()
        taken: set[str] = set()
        for _, node in model.walk():
            if not node.name or node.name in taken:
                node.name = model.fresh(node.op, node.outputs[0].name if node.outputs else "")
                change.edits += 1
            taken.add(node.name)
        return change
