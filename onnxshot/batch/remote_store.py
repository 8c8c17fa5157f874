"""Results in an object store such as s3://. A cell counts as finished once its row is written, which is last."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxshot.batch.cells import Cell, Row
from onnxshot.batch.file_conflicts import FIRST_BYTES, is_log, is_summary
from onnxshot.batch.store import LOG, REPORT, ROW, SUMMARY, Folder, Store
from onnxshot.errors import UsageError
from onnxshot.files import cache_folder
from onnxshot.files.urls import is_remote, is_web, redacted
from onnxshot.remote.copies import name_of
from onnxshot.remote.filesystems import filesystem, one_line_errors


def store_of(output: str) -> Store:
    """Return the store of an output, a folder or a URL. Raises UsageError for a web server, which cannot be written."""
    if is_web(output):
        raise UsageError(f"the output is {redacted(output)}: a web server takes no files", "a folder, s3:// or gs://")
    return Remote(output) if is_remote(output) else Folder(Path(output))


class Remote(Store):
    """Results in an object store.

    Objects cannot be renamed, so a cell is not replaced atomically. Instead its row is written last, and a cell without
    a complete row is not finished. While objects are written, a row without a key lists them. An object that neither a
    row nor the log lists belongs to somebody else and is never replaced. Results are made, and the log is kept, in a
    local folder of the cache.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with one_line_errors(url):
            self._files, self._path = filesystem(self.url)
            self._aside = cache_folder.folder() / "batch" / name_of(self.url, {})
            log = self._aside / LOG
            if not log.exists() and self._files.exists(f"{self._path}/{LOG}"):
                self._aside.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._path}/{LOG}", str(log))
            self._refuse_foreign(log)
        self._local = Folder(self._aside)

    def _refuse_foreign(self, log: Path) -> None:
        """Raise UsageError if the log or the summary was not written by a batch."""
        summary = f"{self._path}/{SUMMARY}"
        ours = {LOG: not log.exists() or is_log(log.read_bytes()[:FIRST_BYTES])}
        ours[SUMMARY] = not self._files.exists(summary) or is_summary(self._files.cat_file(summary))
        for name in (name for name, own in ours.items() if not own):
            if name == LOG:
                log.unlink()  # the local copy
            what = f"{redacted(self.url)}/{name} exists and was not written by a batch"
            raise UsageError(what, "choose another output")

    def finished(self, cell: Cell) -> Row | None:
        """See Store. Files are compared by size, without downloading them."""
        place = f"{self._path}/{cell.place}"
        self._files.invalidate_cache()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            row: Row = json.loads(self._files.cat_file(f"{place}/{ROW}"))
            if row["key"] == cell.key:
                sizes = [self._files.info(f"{place}/{o['file']}")["size"] for o in row["outputs"]]
                return row if sizes == [o["bytes"] for o in row["outputs"]] else None
        return None

    def part(self, cell: Cell) -> Path:
        """See Store."""
        return self._local.part(cell)

    def publish(self, cell: Cell, part: Path, row: Mapping[str, Any]) -> None:
        """See Store."""
        place = f"{self._path}/{cell.place}"
        with one_line_errors(f"{self.url}/{cell.place}"):
            files = {p.relative_to(part).as_posix(): p for p in sorted(part.rglob("*")) if p.is_file()}
            known = self._own(cell)
            for name in files:
                if name not in known and self._files.exists(f"{place}/{name}"):
                    what = f"{redacted(self.url)}/{cell.place}/{name} exists and was not written by a batch"
                    raise UsageError(what, "move it away, or choose another output")
            listed = [{"file": name} for name in sorted(known | files.keys())]
            self._files.pipe_file(f"{place}/{ROW}", json.dumps({"key": "", "outputs": listed}).encode())
            for name, file in files.items():
                self._files.put_file(str(file), f"{place}/{name}")
            self._files.pipe_file(f"{place}/{ROW}", json.dumps(row, indent=1).encode())
        self._local.discard(part)

    def _own(self, cell: Cell) -> set[str]:
        """Return the names of the objects of a cell that batches have written, from its row and the log."""
        rows: list[Row] = []
        with contextlib.suppress(OSError, ValueError):
            rows.append(json.loads(self._files.cat_file(f"{self._path}/{cell.place}/{ROW}")))
        with contextlib.suppress(OSError), (self._aside / LOG).open(encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    event = json.loads(line)
                    rows += [event] if event["event"] == "done" and event["cell"] == cell.place else []
        with contextlib.suppress(KeyError, TypeError):
            return {REPORT, *(str(output["file"]) for row in rows for output in row["outputs"])} if rows else set()
        return set()

    def discard(self, part: Path) -> None:
        """See Store."""
        self._local.discard(part)

    def note(self, event: Mapping[str, Any]) -> None:
        """See Store."""
        self._local.note(event)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """See Store. The log is uploaded too."""
        self._local.summarize(values)
        with one_line_errors(self.url):
            for name in (SUMMARY, LOG):
                self._files.put_file(str(self._aside / name), f"{self._path}/{name}")

    def close(self) -> None:
        """See Store."""
        self._local.close()
