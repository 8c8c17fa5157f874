"""Arrays that are kept for long: in memory up to a limit, mapped from a temporary file beyond it."""

from __future__ import annotations

import contextlib
import mmap
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.files.atomic_write import room_for, scratch_part
from onnxshot.files.temporary_folders import Part

_Scalar = TypeVar("_Scalar", bound=np.generic)
_WHAT = "samples and tensors that wait for later steps"
_ALIGN = mmap.ALLOCATIONGRANULARITY  # bytes: where maps may begin


class KeptArrays:
    """Keeps arrays. Those beyond the limit are written to a temporary file, and mapped from it when they are read.

    Leaving the `with` block removes the file; arrays that were mapped from it stay valid.

    Args:
        limit: Most bytes of arrays in memory; by default the budget's share (see `memory.held_bytes`).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._left = memory.held_bytes() if limit is None else limit
        self._part: Part | None = None
        self._maps: list[mmap.mmap] = []
        self._end = 0

    def __enter__(self) -> KeptArrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            with contextlib.suppress(OSError):  # a file system that removes no mapped file; later runs sweep it up
                self._part.close()
            self._part = None

    def release(self) -> None:
        """Let the system take back the pages of mapped arrays that have been read. They are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def add(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Return the array, or, if it does not fit in memory any more, an equal one that is mapped from the file.

        Pages of earlier arrays are released.
        """
        if array.nbytes <= self._left or not array.nbytes:
            self._left -= array.nbytes
            return array
        if self._part is None:
            self._part = scratch_part()
        path = self._part.path / "arrays"
        self.release()
        start = -(-self._end // _ALIGN) * _ALIGN
        with room_for(_WHAT, path.parent, memory=True), path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(start)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            self._maps.append(mmap.mmap(file.fileno(), array.nbytes, access=mmap.ACCESS_READ, offset=start))
        self._end = start + array.nbytes
        mapped: NDArray[Any] = np.frombuffer(self._maps[-1], array.dtype).reshape(array.shape)
        return mapped
