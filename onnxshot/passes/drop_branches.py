"""Leave out branches: of a sum, one side is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxshot.graph import Model, edit, shape_inference
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropBranches:
    """Let what reads a sum read one side of it. sums: name of what an Add gives -> name of the side that goes."""

    sums: Mapping[str, str]
    name: str = "drop_branches"

    def run(self, model: Model) -> Change:
        """Drop; edits counts the sums."""
        change = Change()
        for add in [node for node in model.graph.nodes if node.outputs[0].name in self.sums]:
            gone = self.sums[add.outputs[0].name]
            if edit.bypass(model, add, next(t for t in add.inputs if t.name != gone)):
                change.edits += 1
        edit.remove_unused(model)
        shape_inference.infer(model)
        return change
