"""Results that go to a store of objects, such as s3://: written with a marker at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxshot.batch.cells import Cell, Row
from onnxshot.batch.store import LOG, ROW, SUMMARY, Folder, Store
from onnxshot.errors import UsageError
from onnxshot.observing import cache
from onnxshot.remote.copies import name_of
from onnxshot.remote.filesystems import filesystem, told
from onnxshot.remote.urls import is_remote, is_web, redacted


def store_of(output: str) -> Store:
    """The store of an output, a folder or a URL. Raises UsageError for a web server."""
    if is_web(output):
        raise UsageError(f"the output is {redacted(output)}: a web server takes no files", "a folder, s3:// or gs://")
    return Remote(output) if is_remote(output) else Folder(Path(output))


class Remote(Store):
    """A store of objects, which cannot be renamed: the row of a cell is written last, and without it nothing counts.

    Cells are made, and the log is kept, in a folder of the cache.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with told(url):
            self._files, self._path = filesystem(self.url)
            self._aside = cache.folder() / "batch" / name_of(self.url, {})
            log = self._aside / LOG
            if not log.exists() and self._files.exists(f"{self._path}/{LOG}"):
                self._aside.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._path}/{LOG}", str(log))
        self._local = Folder(self._aside)

    def finished(self, cell: Cell) -> Row | None:
        """See Store; files count by their sizes."""
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
        with told(f"{self.url}/{cell.place}"):
            if self._files.exists(f"{place}/{ROW}"):
                self._files.rm_file(f"{place}/{ROW}")
            for file in sorted(p for p in part.iterdir() if p.is_file()):
                self._files.put_file(str(file), f"{place}/{file.name}")
            self._files.pipe_file(f"{place}/{ROW}", json.dumps(row, indent=1).encode())
        self._local.discard(part)

    def discard(self, part: Path) -> None:
        """See Store."""
        self._local.discard(part)

    def note(self, event: Mapping[str, Any]) -> None:
        """See Store."""
        self._local.note(event)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """See Store. The log goes there too."""
        self._local.summarize(values)
        with told(self.url):
            for name in (SUMMARY, LOG):
                self._files.put_file(str(self._aside / name), f"{self._path}/{name}")

    def close(self) -> None:
        """See Store."""
        self._local.close()
