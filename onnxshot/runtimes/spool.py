"""Arrays that wait between steps: in memory up to a limit, in a temporary file beyond it."""

from __future__ import annotations

import contextlib
import errno
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.files.atomic_write import room_for, scratch_part
from onnxshot.files.temporary_folders import Part

_Place = tuple[int, np.dtype[Any], tuple[int, ...]]  # offset in the file, type and shape


class Spool:
    """Arrays by key. Those beyond the limit are written to a temporary file, and read back when they are asked for.

    It may be used by several threads. Leaving the `with` block removes the file.

    Args:
        limit: Most bytes of arrays in memory; by default the budget's share (see `memory.held_bytes`).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = memory.held_bytes() if limit is None else limit
        self._held: dict[Hashable, NDArray[Any]] = {}
        self._size = 0
        self._places: dict[Hashable, _Place] = {}
        self._end = 0
        self._free: list[tuple[int, int]] = []  # (bytes, offset) of what was dropped, ascending
        self._part: Part | None = None
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._places

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keep an array; it takes the place of an earlier one of the same key. Strings always stay in memory."""
        self.drop(key)
        with self._lock:
            if array.dtype.hasobject or array.dtype.kind in "SU" or self._size + array.nbytes <= self._limit:
                # An output of a session is a view of memory that it shares with others, and keeps all of it alive.
                self._held[key] = array if array.flags.owndata else array.copy()
                self._size += array.nbytes
                return
            file, start = self._opened(), self._room(array.nbytes)
            file.seek(start)
            with room_for("tensors that wait for later parts of the model", Path(file.name).parent, memory=True):
                _write(file, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._places[key] = start, array.dtype, array.shape

    def get(self, key: Hashable) -> NDArray[Any]:
        """Return the array of a key. Raises KeyError if there is none."""
        with self._lock:
            if key in self._held:
                return self._held[key]
            start, dtype, shape = place = self._places[key]
            file = self._opened()
            file.seek(start)
            read = np.empty(_bytes(place), np.uint8)
            _read(file, read.data)
            return read.view(dtype).reshape(shape)

    def drop(self, key: Hashable) -> None:
        """Forget the array of a key, if there is one. Its place in the file is used again."""
        with self._lock:
            array = self._held.pop(key, None)
            if array is not None:
                self._size -= array.nbytes
            place = self._places.pop(key, None)
            if place is None:
                return
            if self._places:
                insort(self._free, (_bytes(place), place[0]))
                return
            self._opened().truncate(0)
            self._end = 0
            self._free.clear()

    def _room(self, size: int) -> int:
        """The offset of the smallest place that was dropped and is large enough; else the end of the file."""
        at = bisect_left(self._free, (size, 0))
        if size and at < len(self._free):
            room, start = self._free.pop(at)
            if room > size:
                insort(self._free, (room - size, start + size))
            return start
        self._end += size
        return self._end - size

    @property
    def path(self) -> Path | None:
        """The temporary file; None where there is none."""
        return self._part.path / "spool" if self._part is not None else None

    def keys(self) -> Iterator[Hashable]:
        """Yield the keys of all arrays."""
        yield from (*self._held, *self._places)

    def close(self) -> None:
        """Forget all arrays and remove the file."""
        self._held.clear()
        self._places.clear()
        self._free.clear()
        self._size = self._end = 0
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.close()
        self._file = self._part = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._part = scratch_part()
            self._file = (self._part.path / "spool").open("w+b", buffering=0)
        return self._file

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def _write(file: IO[bytes], data: memoryview) -> None:
    """Write all bytes. A call may write fewer: at most 2 GiB, and none beyond the end of a disk."""
    while data:
        data = data[file.write(data) :]


def _read(file: Any, into: memoryview) -> None:
    """Fill a buffer. A call may read less: at most 2 GiB."""
    while into:
        count = file.readinto(into)
        if not count:
            raise OSError(errno.EIO, "a temporary file was cut off", str(file.name))
        into = into[count:]


def _bytes(place: _Place) -> int:
    return int(np.prod(place[2], dtype=np.int64)) * place[1].itemsize
