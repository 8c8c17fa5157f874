"""Remove initializers from the list of graph inputs, so that callers cannot override a weight that is quantized.

Before IR version 4 every initializer had to be listed as an input; since then, listing one lets callers override it.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model
from onnxshot.graph.skip import Skip
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class DropOverridable:
    """Remove initializers from the list of inputs, or mark them so that no pass changes them.

    Edits count the inputs removed. Skip reason, with `keep`: "it is an input too, so a caller may replace it".

    Attributes:
        keep: Leave the inputs listed, and mark their initializers as overridable.
    """

    keep: bool = False
    name: str = "drop_overridable"

    def run(self, model: Model) -> Change:
        """Remove the inputs, or mark the initializers; a note in the model lists what was removed."""
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
            model.envelope.ir_version = max(model.envelope.ir_version, 4)  # below 4, initializers must be inputs
        return change
