"""Resume a batch: a cell is skipped when an earlier run stored its result under the same key.

The key of a cell hashes everything that decides its result, so any change of a model, its data or its options makes
the cell run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxshot import __version__
from onnxshot.batch.cells import Cell, Row
from onnxshot.batch.store import Store
from onnxshot.calibration.preset import load_preset
from onnxshot.calibration.user_functions import named
from onnxshot.delivery.record import sha256
from onnxshot.errors import ModelError
from onnxshot.graph.load import external_files


def finished_row(cell: Cell, store: Store) -> Row | None:
    """Return the row that an earlier run stored for this cell and log that it was kept; None if the cell must run."""
    row = store.finished(cell)
    if row is not None:
        store.note({"event": "kept", "cell": cell.place, "key": cell.key})
    return row


@dataclass(slots=True)
class CellKeys:
    """Computes the keys of cells. Each file and folder is hashed once."""

    _known: dict[str, str] = field(default_factory=dict)

    def keyed(self, cell: Cell) -> Cell:
        """Return the cell with its key set. Raises UsageError where its preset is invalid."""
        return replace(cell, key=self.key(cell))

    def key(self, cell: Cell) -> str:
        """Hash everything that decides the result of a cell.

        That is the content of the model, the data, the preset, the statistics and the evaluation function, the options,
        and the version of onnxshot. A path that does not exist is hashed as text; the cell itself then reports the
        error. Thresholds and the number of threads change no result, so they are not part of the key.

        Returns:
            SHA-256 as hex digits.
        """
        entry = cell.entry
        data = [self._of(path) for path in (entry.model, entry.calib, entry.stats, entry.thresholds.eval)]
        reading = entry.reading
        preset = load_preset(reading) if isinstance(reading, str) else reading
        how = [preset.fields().hex(), getattr(preset, "size_is_default", False)] if preset is not None else []
        options: list[object] = [cell.name, cell.target, cell.stages.to_dict(), entry.samples, entry.seed, entry.emit]
        options += [entry.search_seconds, entry.accept]
        return hashlib.sha256(json.dumps([__version__, data, how, options]).encode()).hexdigest()

    def _of(self, path: str | None) -> str:
        if path is None:
            return ""
        if path not in self._known:
            self._known[path] = _content(path)
        return self._known[path]


def _content(text: str) -> str:
    """Hash a file with its external data, all files of a folder, or the file of a function; else return the text."""
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        names = [p.relative_to(path).as_posix() for p in files]
        return hashlib.sha256(json.dumps([names, [*map(sha256, files)]]).encode()).hexdigest()
    if path.is_file():
        files = [path]
        if path.suffix == ".onnx":
            with contextlib.suppress(ModelError):  # the cell itself reports it
                files += external_files(path)
        return ",".join(sha256(p) for p in files if p.is_file())
    function = named(text)
    if function is not None and Path(function[0]).is_file():
        return f"{sha256(Path(function[0]))}:{function[1]}"
    return text
