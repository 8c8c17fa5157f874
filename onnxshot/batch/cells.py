"""Cells: one model for one target, the unit of work of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from onnxshot.batch.manifest import Entry
from onnxshot.files.urls import is_remote
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages
from onnxshot.remote.copies import Copies

Row = dict[str, Any]
"""The result of a cell as plain values, for JSON."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model for one target. It is converted to JSON and back, to run in a worker process.

    Attributes:
        entry: the model, and how it is compressed.
        target: name of the target. Results go to OUTPUT/<name>/<target>/.
        key: SHA-256, as hex digits, of everything that decides the result; see `resume.CellKeys.key`.
    """

    entry: Entry
    target: str
    key: str = ""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.entry.name

    @property
    def place(self) -> str:
        """Path of its results below the output, such as resnet/ort."""
        return f"{self.name}/{self.target}"

    @property
    def stages(self) -> Stages:
        """The stages of the entry, with this target in each stage that quantizes."""
        stages = self.entry.stages.stages
        return Stages(tuple(s.for_target(self.target) if isinstance(s, Recipe) else s for s in stages))

    def row(self, **values: Any) -> Row:
        """Make a row of this cell from further values."""
        return {"name": self.name, "target": self.target, "key": self.key, **values}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"entry": self.entry.to_dict(), "target": self.target, "key": self.key}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore a cell from the values of `to_dict`."""
        return cls(Entry.from_dict(values["entry"]), values["target"], values["key"])


Done = Callable[[Cell, Path, Row], None]
"""Callback of an engine for each cell that ended: the cell, the folder of its results, and its row."""


def fetched(cell: Cell, copies: Copies) -> Cell:
    """Return the cell with local copies of its remote files. Raises UsageError if one cannot be fetched."""
    entry = cell.entry
    model = copies.of(entry.model, weights=True) if is_remote(entry.model) else entry.model
    paths = {"calib": entry.calib, "preset": entry.preset, "stats": entry.stats}
    local = {key: copies.of(path) for key, path in paths.items() if path is not None and is_remote(path)}
    return replace(cell, entry=replace(entry, model=model, **local))  # type: ignore[arg-type]  # by name
