"""List what a batch reads and writes, so that conflicts are found before the work starts."""

from __future__ import annotations

import json
from pathlib import Path

from onnxshot.batch.cells import Cell
from onnxshot.batch.manifest import Manifest
from onnxshot.batch.store import LOG, SUMMARY, changed_in
from onnxshot.delivery.input_files import of_calib, of_function, of_model_file, of_preset, of_tokenizer
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files, Read, Write
from onnxshot.files.urls import is_remote

FIRST_BYTES = 4096  # of the log, enough to recognize it
_OPTION = "'output' of the manifest"


def files_of(manifest: Manifest) -> Files:
    """List the local files of a batch.

    The folder of a cell is replaced as a whole, so no file that a cell reads may lie in one.
    """
    reads = [Read(Path(name), "the manifest or a recipe") for name in manifest.files]
    for entry in manifest.entries:
        reads += [*of_model_file(entry.model, f"the model {entry.name!r}"), *of_calib(entry.calib)]
        reads += [Read(path, f"a file of the model {entry.name!r}") for path in _in_folder(entry.model)]
        reads += [*of_preset(entry.preset), *of_tokenizer(entry.tokenizer)]
        reads += of_function(entry.thresholds.eval, "the evaluation")
        reads += [Read(Path(entry.stats), "the statistics")] if entry.stats and not is_remote(entry.stats) else []
    if is_remote(manifest.output):
        return Files(tuple(reads))
    output = Path(manifest.output)
    cells = [Cell(entry, target) for entry in manifest.entries for target in manifest.targets]
    for cell in cells:
        _refuse_link(output, cell)
    return Files(
        tuple(reads),
        (
            Write(output / LOG, "the log", _foreign_log, option=_OPTION),
            Write(output / SUMMARY, "the summary", _foreign_summary, option=_OPTION),
            *(
                Write(output / cell.place, f"the cell {cell.place}", _changed_cell, folder=True, option=_OPTION)
                for cell in cells
            ),
        ),
    )


def _refuse_link(output: Path, cell: Cell) -> None:
    """Raise UsageError if the folder of a cell is a link, because it then belongs to somebody else."""
    for folder in (output / cell.name, output / cell.place):
        if folder.is_symlink():
            what = f"the cell {cell.place} would go through a link, {folder} -> {folder.readlink()}"
            raise UsageError(what, f"remove the link, or choose another place with {_OPTION}")


def _changed_cell(path: Path) -> str:
    name = changed_in(path)
    return f"{path / name} was changed after a batch wrote it" if name else ""


def _foreign_log(path: Path) -> str:
    with path.open("rb") as file:
        return "" if is_log(file.read(FIRST_BYTES)) else "it is not the log of a batch"


def _foreign_summary(path: Path) -> str:
    return "" if is_summary(path.read_bytes()) else "it is not the summary of a batch"


def is_log(start: bytes) -> bool:
    """Recognize a log by its first bytes: lines of JSON, each an event with its time. The last may be incomplete."""
    first, ended, _ = start.partition(b"\n")
    try:
        event = json.loads(first)
        return isinstance(event, dict) and {"time", "event"} <= event.keys()
    except ValueError:
        return not ended and (not first or first.startswith(b'{"time": '))


def is_summary(data: bytes) -> bool:
    """Return True if this is the summary of a batch."""
    try:
        values = json.loads(data)
    except ValueError:
        return False
    return isinstance(values, dict) and {"exit_code", "cells", "seconds"} <= values.keys()


def _in_folder(model: str) -> list[Path]:
    """The files of a model that is a folder; empty for a file."""
    if is_remote(model) or not Path(model).is_dir():
        return []
    return [path for path in sorted(Path(model).rglob("*")) if path.is_file()]
