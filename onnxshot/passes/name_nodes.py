"""Give every node a name of its own: plans, reports and ONNX Runtime go by them."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class NameNodes:
    """Name nodes that have no name, or one that an earlier node has: after their op and first output."""

    name: str = "name_nodes"

    def run(self, model: Model) -> Change:
        """Name the nodes, subgraphs included; edits counts those renamed."""
        change = Change()
        taken: set[str] = set()
        for _, node in model.walk():
            if not node.name or node.name in taken:
                node.name = model.fresh(node.op, node.outputs[0].name if node.outputs else "")
                change.edits += 1
            taken.add(node.name)
        return change
