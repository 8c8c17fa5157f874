"""Remove nodes that no output depends on."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model, edit
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class RemoveUnused:
    """Remove what nothing reads, in subgraphs too; weights go with it, inputs of the model stay."""

    name: str = "remove_unused"

    def run(self, model: Model) -> Change:
        """Remove; edits counts the nodes that went."""
        return Change(edits=edit.remove_unused(model))
