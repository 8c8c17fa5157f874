"""Where results are: a folder a cell that is there as a whole or not at all, a log, and the summary."""

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
    """Results of a batch. One batch at a time writes to a store."""

    @abstractmethod
    def finished(self, cell: Cell) -> Row | None:
        """The row of a cell that was done, with its key and all of its files; None where it is to be done."""

    @abstractmethod
    def part(self, cell: Cell) -> Path:
        """A new empty folder to make the results of a cell in."""

    @abstractmethod
    def publish(self, cell: Cell, part: Path, row: Mapping[str, Any]) -> None:
        """Put the results of a cell at their place, in place of older ones.

        Raises UsageError where that cannot be done: only files that a batch has written there are replaced.
        """

    @abstractmethod
    def discard(self, part: Path) -> None:
        """Remove a folder that `part` has made, and nothing else, whatever is given."""

    @abstractmethod
    def note(self, event: Mapping[str, Any]) -> None:
        """Append a line to the log, with the time."""

    @abstractmethod
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Write the summary."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store; what was half made is removed."""


class Folder(Store):
    """A store on a file system.

    A cell is made in a folder aside, which is exchanged for the one at its place: a process that is killed at any
    moment leaves the old results or the new ones, and maybe a folder aside, which the next batch removes.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        try:
            output.mkdir(parents=True, exist_ok=True)
            part = Part.at(output / _PARTS)
            if part is None:
                raise UsageError(f"another batch writes to {output}", "wait for it, or choose another output")
            self._part, self._parts = part, part.path
            self._log = os.open(output / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as e:
            raise UsageError(f"cannot write to {e.filename or output}: {e.strerror}", "choose another output") from e
        size = os.fstat(self._log).st_size
        if size and os.pread(self._log, 1, size - 1) != b"\n":
            os.write(self._log, b"\n")  # a line that was torn stays alone

    def finished(self, cell: Cell) -> Row | None:
        """See Store; the files are hashed, so that a missing one is made anew."""
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
        told = {**row, _REPORT_SHA: sha256(part / REPORT)} if (part / REPORT).is_file() else row
        (part / ROW).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o755)
        final = self.output / cell.place
        try:
            final.parent.mkdir(exist_ok=True)
            if final.exists():
                take_along(final, part, _own_files(final))
            put_folder(part, final, self._parts)
        except OSError as e:
            raise UsageError(f"cannot write to {final}: {e.strerror}", "move what is there, and start again") from e
        shutil.rmtree(part, ignore_errors=True)

    def discard(self, part: Path) -> None:
        """See Store."""
        if self._parts.resolve() in part.resolve().parents:
            shutil.rmtree(part, ignore_errors=True)

    def note(self, event: Mapping[str, Any]) -> None:
        """See Store. One write a line: lines are whole, unless the machine goes down."""
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
        listed()  # drops what workers that were killed had there


def changed_in(folder: Path) -> str:
    """The first file of a cell that is there and is not what a batch has written; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        row = json.loads((folder / ROW).read_text("utf-8"))
        known = {str(output["file"]): output["sha256"] for output in row["outputs"]} if row["key"] else {}
        known |= {REPORT: row[_REPORT_SHA]} if _REPORT_SHA in row else {}
        return next(
            (name for name, sha in known.items() if (folder / name).exists() and sha256(folder / name) != sha), ""
        )
    return ""


def _own_files(folder: Path) -> set[str]:
    """The files of a cell that a batch has written, by their paths in it; empty where it has written none there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        row = json.loads((folder / ROW).read_text("utf-8"))
        return {ROW, REPORT, *(str(output["file"]) for output in row["outputs"])} if row["key"] else set()
    return set()
