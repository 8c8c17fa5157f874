"""Settle initializers that are also listed as inputs: a weight that callers may replace cannot be quantized."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model
from onnxshot.graph.skip import Skip
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropOverridable:
    """Take initializers off the list of inputs; `keep` leaves and marks them, so that no pass touches them."""

    keep: bool = False
    name: str = "drop_overridable"

    def run(self, model: Model) -> Change:
        """Drop or keep; edits counts the inputs dropped, skips name those kept."""
        change = Change()
        overridable = model.graph.overridable
        if self.keep:
            for name, constant in overridable.items():
                constant.overridable = True
                change.skips.append(Skip(name, "initializer", "it is an input too, so a caller may replace it"))
            return change
        change.edits = len(overridable)
        if overridable:
            names = ", ".join(list(overridable)[:3]) + (", ..." if len(overridable) > 3 else "")
            model.notes.append(f"{len(overridable)} initializers are no longer listed as inputs: {names}")
            overridable.clear()
            model.envelope.ir_version = max(model.envelope.ir_version, 4)  # below 4 they must be listed
        return change
