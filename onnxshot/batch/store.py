"""Results of a batch: one folder per cell, written atomically, a log, and the summary."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxshot import system
from onnxshot.batch.cells import Cell, Row
from onnxshot.delivery.record import sha256
from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import put, put_folder, take_along
from onnxshot.files.temporary_folders import Part, listed

ROW, LOG, SUMMARY = "cell.json", "batch.jsonl", "summary.json"
REPORT = "report.json"
_PARTS = ".parts"
_REPORT_SHA = "report_sha256"


class Store(ABC):
    """The results of a batch. Only one batch at a time may write to a store."""

    @abstractmethod
    def finished(self, cell: Cell) -> Row | None:
        """Return the stored row of a cell if its key is equal and its files are intact; None if the cell must run."""

    @abstractmethod
    def part(self, cell: Cell) -> Path:
        """Create an empty temporary folder for the results of a cell."""

    @abstractmethod
    def publish(self, cell: Cell, part: Path, row: Mapping[str, Any]) -> None:
        """Move the results of a cell to their place and replace older ones.

        Only files that a batch wrote are replaced. Raises UsageError if the results cannot be written.
        """

    @abstractmethod
    def discard(self, part: Path) -> None:
        """Remove a folder that `part` created. Any other path is ignored."""

    @abstractmethod
    def note(self, event: Mapping[str, Any]) -> None:
        """Append an event to the log, with the time."""

    @abstractmethod
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Write the summary."""

    @abstractmethod
    def close(self) -> None:
        """Release the store and remove unfinished results."""


class Folder(Store):
    """A store on a file system.

    The results of a cell are made in a temporary folder, which then replaces the folder of the cell. A process that is
    killed at any moment leaves either the old results or the new ones. A temporary folder that is left over is removed
    by the next batch.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        try:
            output.mkdir(parents=True, exist_ok=True)
            part = Part.at(output / _PARTS)
            if part is None:
                raise UsageError(f"another batch writes to {output}", "wait for it, or choose another output")
            self._part, self._parts = part, part.path
            self._log = os.open(output / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | system.BINARY, 0o644)
        except OSError as e:
            raise UsageError(f"cannot write to {e.filename or output}: {e.strerror}", "choose another output") from e
        size = os.fstat(self._log).st_size
        os.lseek(self._log, max(size - 1, 0), os.SEEK_SET)
        if size and os.read(self._log, 1) != b"\n":
            os.write(self._log, b"\n")  # terminate an incomplete line of a batch that was killed

    def finished(self, cell: Cell) -> Row | None:
        """See Store. Files are compared by their hashes."""
        folder = self.output / cell.place
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            row: Row = json.loads((folder / ROW).read_text("utf-8"))
            row.pop(_REPORT_SHA, None)
            if row["key"] == cell.key and all(sha256(folder / o["file"]) == o["sha256"] for o in row["outputs"]):
                return row
        return None

    def part(self, cell: Cell) -> Path:
        """See Store."""
        return Path(tempfile.mkdtemp(prefix=f"{cell.name}.{cell.target}.", dir=self._parts))

    def publish(self, cell: Cell, part: Path, row: Mapping[str, Any]) -> None:
        """See Store."""
        stored = {**row, _REPORT_SHA: sha256(part / REPORT)} if (part / REPORT).is_file() else row
        (part / ROW).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o755)
        final = self.output / cell.place
        try:
            final.parent.mkdir(exist_ok=True)
            if final.exists():
                take_along(final, part, _own_files(final))
            put_folder(part, final, self._parts)
        except OSError as e:
            raise UsageError(f"cannot write to {final}: {e.strerror}", "move it away and start again") from e
        shutil.rmtree(part, ignore_errors=True)

    def discard(self, part: Path) -> None:
        """See Store."""
        if self._parts.resolve() in part.resolve().parents:
            shutil.rmtree(part, ignore_errors=True)

    def note(self, event: Mapping[str, Any]) -> None:
        """See Store. Each line is one write, so lines are complete unless the machine goes down."""
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False) + "\n"
        os.write(self._log, line.encode("utf-8", "backslashreplace"))

    def summarize(self, values: Mapping[str, Any]) -> None:
        """See Store."""
        part = self._parts / SUMMARY
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        put(part, self.output / SUMMARY)

    def close(self) -> None:
        """See Store."""
        os.close(self._log)
        self._part.close()
        listed()  # forgets temporary files of workers that were killed


def changed_in(folder: Path) -> str:
    """Return the first file of a cell that was changed after a batch wrote it; an empty string if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        row = json.loads((folder / ROW).read_text("utf-8"))
        known = {str(output["file"]): output["sha256"] for output in row["outputs"]} if row["key"] else {}
        known |= {REPORT: row[_REPORT_SHA]} if _REPORT_SHA in row else {}
        return next(
            (name for name, sha in known.items() if (folder / name).exists() and sha256(folder / name) != sha), ""
        )
    return ""


def _own_files(folder: Path) -> set[str]:
    """Return the paths, relative to the folder, of the files that a batch wrote there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        row = json.loads((folder / ROW).read_text("utf-8"))
        return {ROW, REPORT, *(str(output["file"]) for output in row["outputs"])} if row["key"] else set()
    return set()
