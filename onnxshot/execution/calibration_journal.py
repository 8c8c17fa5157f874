"""Keep what an unfinished calibration pass over a model in parts has found, so that the next run goes on there.

After each part, the glimpses of its tensors and the tensors that later parts read are written to a folder of the cache,
for the samples that go through the parts together. A run that is killed at any moment leaves whole files. The folder is
removed when the pass has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # numpy then knows bfloat16 by name
import numpy as np

from onnxshot import __version__
from onnxshot.errors import OnnxshotError
from onnxshot.files.atomic_write import write_file
from onnxshot.files.cache_folder import folder, remove
from onnxshot.files.temporary_folders import clear_dead
from onnxshot.runtimes.spool import Spool

MOST_BYTES = 1 << 30
"""Most bytes that one pass keeps, and most that all unfinished passes of other models keep together."""
FORMAT = 1

_HOME = "unfinished"
_KEY = re.compile(r"[0-9a-f]{64}")
_OWN = re.compile(r"pass\.json|\d{1,9}\.(\d{1,9}\.seen|crossing)")
_MOST_HEAD = 64 << 20  # bytes of the list of arrays in a file
_kept: set[Path] = set()  # folders of passes of this process that have not ended
_END = struct.Struct("<IQ")  # the end of a file: a checksum of all before it, and the length of that list


@dataclass(slots=True)
class Journal:
    """The folder of one pass.

    Attributes:
        place: The folder.
        limit: Most bytes of weights of a part, as the run that began the pass had it: other cuts would not fit.
        restored: Samples times parts that were not run again.
    """

    place: Path
    limit: int
    restored: int = 0

    def chunk(self, number: int, samples: Sequence[int]) -> Chunk:
        """Return what is kept of these samples, which go through the parts together. number: of the chunk."""
        return Chunk(self, number, tuple(samples))

    def remove(self) -> None:
        """Remove all files, as the pass has ended."""
        _kept.discard(self.place)
        _remove(self.place)


def goes_on() -> bool:
    """Whether this process keeps something of a pass that it has not ended."""
    return bool(_kept)


def open_journal(key: str, limit: int) -> Journal | None:
    """Open the folder of a pass, and make room for it.

    Args:
        key: Key of the statistics that the pass will give.
        limit: Most bytes of weights of a part, for a new pass. One that an earlier run began with up to twice as much
            goes on with that.

    Returns:
        The journal; None if the cache cannot be written.
    """
    try:
        place = folder() / _HOME / key
        place.mkdir(parents=True, exist_ok=True)
        _shrink(place)
        known = _begun(place)
        if known is None or not limit / 64 <= known <= 2 * limit:
            _remove(place)
            place.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": FORMAT, "version": __version__, "limit": limit})
            _write(place / "pass.json", lambda file: file.write_text(text, "utf-8"))
            known = limit
        return Journal(place, known)
    except (OnnxshotError, OSError):
        return None


def clear() -> int:
    """Remove what all unfinished passes keep. Returns the number of bytes."""
    return sum(map(_remove, _folders()))


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is kept of some samples. A file that is damaged, or of other samples, counts as missing.

    Attributes:
        journal: The pass.
        number: Of the chunk.
        samples: Numbers of the samples.
    """

    journal: Journal
    number: int
    samples: tuple[int, ...]

    def save_seen(self, part: int, keys: Iterable[Hashable], spool: Spool, **head: Any) -> None:
        """Keep the arrays of these keys, which a part has given. head: further values, for JSON."""
        self._save(f"{self.number}.{part}.seen", keys, spool, head)

    def load_seen(self, part: int, spool: Spool) -> dict[str, Any] | None:
        """Put the arrays that `save_seen` kept into a spool, and return its further values; None if there are none."""
        return self._load(f"{self.number}.{part}.seen", spool)

    def save_crossing(self, done: int, keys: Iterable[Hashable], spool: Spool) -> None:
        """Keep the tensors that later parts read, after `done` parts."""
        self._save(f"{self.number}.crossing", keys, spool, {"done": done})

    def load_crossing(self, spool: Spool) -> int:
        """Put the tensors that `save_crossing` kept into a spool, and return `done`; 0 if there are none."""
        head = self._load(f"{self.number}.crossing", spool)
        done = head.get("done") if head is not None else None
        return done if type(done) is int else 0

    def end(self) -> None:
        """Remove the crossing tensors: all parts are done."""
        with contextlib.suppress(OSError):
            (self.journal.place / f"{self.number}.crossing").unlink()

    def _save(self, name: str, keys: Iterable[Hashable], spool: Spool, head: Mapping[str, Any]) -> None:
        """Write a file; one that cannot be written, or for which there is no room, is left out."""
        with contextlib.suppress(OnnxshotError, OSError, _NoRoom):
            path = self.journal.place / name
            older = path.stat().st_size if path.exists() else 0
            room = MOST_BYTES - _size(self.journal.place) + older
            room = min(room, shutil.disk_usage(self.journal.place).free // 2)
            _write(path, lambda file: _write_arrays(file, keys, spool, {**head, "samples": self.samples}, room))
            _kept.add(self.journal.place)

    def _load(self, name: str, spool: Spool) -> dict[str, Any] | None:
        put: list[Hashable] = []
        try:
            head = _read_arrays(self.journal.place / name, spool, put)
            if head.get("samples") == list(self.samples):
                return head
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
            pass
        for key in put:
            spool.drop(key)
        return None


class _NoRoom(Exception):  # it is no error
    """The arrays are too large to be kept, or are text."""


def _write_arrays(path: Path, keys: Iterable[Hashable], spool: Spool, head: Mapping[str, Any], room: int) -> None:
    """Write arrays one after the other, then a list of them, then `_END`.

    Raises _NoRoom for more bytes of arrays than `room`.
    """
    entries, check = [], 0
    with path.open("wb") as file:
        for key in keys:
            array = spool.get(key)
            room -= array.nbytes
            if room < 0 or array.dtype.kind in "OSU":
                raise _NoRoom
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            check = zlib.crc32(data, check)
            file.write(data)
            entries.append([key, array.dtype.name, array.shape])
        text = json.dumps({"head": head, "entries": entries}).encode()
        file.write(text)
        file.write(_END.pack(zlib.crc32(text, check), len(text)))


def _read_arrays(path: Path, spool: Spool, put: list[Hashable]) -> dict[str, Any]:
    """Put the arrays of a file into a spool, and return its head. put: receives their keys, also if this fails.

    Raises:
        OSError, ValueError, TypeError, KeyError, struct.error: The file is missing or damaged.
    """
    with path.open("rb") as file:
        whole = os.fstat(file.fileno()).st_size
        file.seek(max(whole - _END.size, 0))
        wanted, length = _END.unpack(file.read(_END.size))
        begin = whole - _END.size - length
        if begin < 0 or length > _MOST_HEAD:
            raise ValueError("it has no list")
        file.seek(begin)
        text = file.read(length)
        found = json.loads(text)
        entries = [(tuple(key), np.dtype(kind), tuple(map(int, shape))) for key, kind, shape in found["entries"]]
        sizes = [int(np.prod(shape, dtype=object)) * kind.itemsize for _, kind, shape in entries]
        if any(size < 0 for size in sizes) or sum(sizes) != begin:
            raise ValueError("its list is of other arrays")
        file.seek(0)
        check = 0
        for (key, kind, shape), size in zip(entries, sizes, strict=True):
            data = bytearray(file.read(size))
            check = zlib.crc32(data, check)
            spool.put(key, np.frombuffer(data, np.uint8).view(kind).reshape(shape))
            put.append(key)
        if zlib.crc32(text, check) != wanted:
            raise ValueError("it is damaged")
        head: dict[str, Any] = dict(found["head"])
        return head


def _begun(place: Path) -> int | None:
    """The limit with which an earlier run began a pass; None if none did, or another version."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        path = place / "pass.json"
        if path.stat().st_size < 1 << 12:
            found = json.loads(path.read_text("utf-8"))
            if (found.get("format"), found.get("version")) == (FORMAT, __version__):
                limit = found.get("limit")
                return limit if type(limit) is int else None
    return None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write_file(path, write, lasting=False)


def _folders() -> list[Path]:
    """The folders of unfinished passes, least recently written first."""
    found = []
    with contextlib.suppress(OSError, OnnxshotError):
        for place in (folder() / _HOME).iterdir():
            with contextlib.suppress(OSError):
                if _KEY.fullmatch(place.name) and place.is_dir() and not place.is_symlink():
                    found.append((place.stat().st_mtime, place))
    return [place for _, place in sorted(found)]


def _files(place: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in place.iterdir() if _OWN.fullmatch(path.name) and not path.is_symlink()]
    return []


def _size(place: Path) -> int:
    size = 0
    for path in _files(place):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size


def _shrink(own: Path) -> None:
    """Remove the oldest unfinished passes of other models until the rest is within MOST_BYTES.

    Half written files of dead runs are removed from all of them.
    """
    others = [place for place in _folders() if place != own]
    for place in others:
        clear_dead(place)
    size = sum(map(_size, others))
    for place in others:
        if size <= MOST_BYTES:
            return
        size -= _remove(place)


def _remove(place: Path) -> int:
    """Remove the files of a pass, and its folder. Returns the number of bytes."""
    freed = sum(map(remove, _files(place)))
    with contextlib.suppress(OSError):
        freed += clear_dead(place)
        place.rmdir()
    return freed
