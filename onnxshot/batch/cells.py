"""Cells: one model for one target, named by the content of all that decides what comes out."""

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
"""What came of a cell, as plain values."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model for one target; goes to JSON and back, to be done in another process.

    Attributes:
        entry: the model, and how it is compressed.
        target: results go to <name>/<target>/ below the output.
        key: SHA-256, hex, of all that decides the result; see `resume.CellKeys.key`.
    """

    entry: Entry
    target: str
    key: str = ""

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.entry.name

    @property
    def place(self) -> str:
        """Where its results are, below the output."""
        return f"{self.name}/{self.target}"

    @property
    def stages(self) -> Stages:
        """The stages, with this target in all that quantize."""
        stages = self.entry.stages.stages
        return Stages(tuple(replace(s, target=self.target) if isinstance(s, Recipe) else s for s in stages))

    def row(self, **values: Any) -> Row:
        """A row of this cell."""
        return {"name": self.name, "target": self.target, "key": self.key, **values}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"entry": self.entry.to_dict(), "target": self.target, "key": self.key}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave."""
        return cls(Entry.from_dict(values["entry"]), values["target"], values["key"])


Done = Callable[[Cell, Path, Row], None]
"""Takes what an engine has done: the cell, the folder of its results, and its row."""


def fetched(cell: Cell, copies: Copies) -> Cell:
    """The cell with local copies of all it reads. Raises UsageError where one cannot be had."""
    entry = cell.entry
    model = copies.of(entry.model, weights=True) if is_remote(entry.model) else entry.model
    paths = {"calib": entry.calib, "preset": entry.preset, "stats": entry.stats}
    local = {key: copies.of(path) for key, path in paths.items() if path is not None and is_remote(path)}
    return replace(cell, entry=replace(entry, model=model, **local))  # type: ignore[arg-type]  # by name
