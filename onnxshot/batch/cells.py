"""Cells: one model for one target, named by the content of all that decides what comes out."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from onnxshot import __version__
from onnxshot.batch.manifest import Entry
from onnxshot.calibration.preset import load_preset
from onnxshot.calibration.user_functions import named
from onnxshot.delivery.record import sha256
from onnxshot.errors import ModelError
from onnxshot.files.urls import is_remote
from onnxshot.graph.load import external_files
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
        key: SHA-256, hex, of all that decides the result; see `Contents.key`.
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


@dataclass(slots=True)
class Contents:
    """Hashes of files and folders; each is read once."""

    _known: dict[str, str] = field(default_factory=dict)

    def keyed(self, cell: Cell) -> Cell:
        """The cell with its key. Raises UsageError where its preset is none."""
        return replace(cell, key=self.key(cell))

    def key(self, cell: Cell) -> str:
        """SHA-256, hex, of the content of model, data, preset, statistics and evaluation, the options, and the version.

        Where nothing of a path is there, its text counts: what fails then says why. Thresholds do not count, nor how
        many threads there are.
        """
        entry = cell.entry
        data = [self._of(path) for path in (entry.model, entry.calib, entry.stats, entry.thresholds.eval)]
        preset = load_preset(entry.preset) if entry.preset is not None else None
        how = [preset.fields().hex(), preset.size_is_default] if preset is not None else []
        options = [cell.name, cell.target, cell.stages.to_dict(), entry.samples, entry.seed, entry.emit]
        return hashlib.sha256(json.dumps([__version__, data, how, options]).encode()).hexdigest()

    def _of(self, path: str | None) -> str:
        if path is None:
            return ""
        if path not in self._known:
            self._known[path] = _content(path)
        return self._known[path]


def _content(text: str) -> str:
    """The hash of a file with its external data, of all files of a folder, or of a function's file; else the text."""
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        names = [p.relative_to(path).as_posix() for p in files]
        return hashlib.sha256(json.dumps([names, [*map(sha256, files)]]).encode()).hexdigest()
    if path.is_file():
        files = [path]
        if path.suffix == ".onnx":
            with contextlib.suppress(ModelError):  # the cell tells it
                files += external_files(path)
        return ",".join(sha256(p) for p in files if p.is_file())
    function = named(text)
    if function is not None and Path(function[0]).is_file():
        return f"{sha256(Path(function[0]))}:{function[1]}"
    return text
