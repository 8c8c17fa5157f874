"""Cells: one model for one target, named by the content of all that decides what comes out."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from onnxshot import __version__
from onnxshot.batch.manifest import Entry, Thresholds, for_target
from onnxshot.batch.remote import is_remote, local_copy
from onnxshot.calibration.functions import named
from onnxshot.calibration.preprocess import load_preset
from onnxshot.errors import ModelError
from onnxshot.graph.load import external_files


@dataclass(frozen=True, slots=True)
class Cell:
    """One model for one target, with local paths; goes to JSON and back, to be done in another process.

    Attributes:
        name, target: results go to <name>/<target>/ below the output.
        model, calib, preset, stats, samples, seed, emit: as `quantize` takes them.
        stages: plain values of the stages, of this target.
        thresholds: what the gate asks of it.
        key: SHA-256, hex, of all that decides the result; see `Contents.key`.
    """

    name: str
    target: str
    model: str
    stages: Mapping[str, Any]
    thresholds: Thresholds
    calib: str | None = None
    preset: str | None = None
    stats: str | None = None
    samples: int | str = "auto"
    seed: int = 0
    emit: tuple[str, ...] | None = None
    key: str = ""

    @property
    def place(self) -> str:
        """Where its results are, below the output."""
        return f"{self.name}/{self.target}"

    def with_stats(self, path: str) -> Self:
        """The same cell, with statistics that stand for a pass over its samples."""
        return replace(self, stats=path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave."""
        limits, emit = Thresholds(**values["thresholds"]), values["emit"]
        return cls(**{**values, "thresholds": limits, "emit": tuple(emit) if emit else None})


def cell_of(entry: Entry, target: str) -> Cell:
    """The cell of a model for a target, without a key."""
    return Cell(
        entry.name, target, entry.model, for_target(entry.stages, target).to_dict(), entry.thresholds,
        calib=entry.calib, preset=entry.preset, stats=entry.stats, samples=entry.samples, seed=entry.seed,
        emit=entry.emit,
    )  # fmt: skip


def fetched(cell: Cell) -> Cell:
    """The cell with local copies of all it reads. Raises UsageError where one cannot be had."""
    model = local_copy(cell.model, weights=True) if is_remote(cell.model) else cell.model
    calib, stats = (local_copy(p) if p is not None and is_remote(p) else p for p in (cell.calib, cell.stats))
    return replace(cell, model=model, calib=calib, stats=stats)


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
        data = [self._of(path) for path in (cell.model, cell.calib, cell.stats, cell.thresholds.eval)]
        preset = load_preset(cell.preset) if cell.preset is not None else None
        how = [preset.fields().hex(), preset.size_is_default] if preset is not None else []
        options = [cell.name, cell.target, cell.stages, cell.samples, cell.seed, cell.emit]
        return hashlib.sha256(json.dumps([__version__, data, how, options]).encode()).hexdigest()

    def _of(self, path: str | None) -> str:
        if path is None:
            return ""
        if path not in self._known:
            self._known[path] = _content(path)
        return self._known[path]


def hash_file(path: Path) -> str:
    """SHA-256, hex, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(text: str) -> str:
    """The hash of a file with its external data, of all files of a folder, or of a function's file; else the text."""
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        names = [p.relative_to(path).as_posix() for p in files]
        return hashlib.sha256(json.dumps([names, [*map(hash_file, files)]]).encode()).hexdigest()
    if path.is_file():
        files = [path]
        if path.suffix == ".onnx":
            with contextlib.suppress(ModelError):  # the cell tells it
                files += external_files(path)
        return ",".join(hash_file(p) for p in files if p.is_file())
    function = named(text)
    if function is not None and Path(function[0]).is_file():
        return f"{hash_file(Path(function[0]))}:{function[1]}"
    return text
