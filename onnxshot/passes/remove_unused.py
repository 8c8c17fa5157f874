"""Remove nodes that no output depends on."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model, edit
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class RemoveUnused:
    """Remove nodes and weights that no output depends on, in subgraphs too. Inputs of the model stay.

    Edits count the removed nodes. Nothing is skipped.
    """

    name: str = "remove_unused"

    def run(self, model: Model) -> Change:
        """Remove the nodes."""
        return Change(edits=edit.remove_unused(model))
