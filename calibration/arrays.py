"""Read .npy and .npz files that may be broken or hostile: sizes are checked before memory is allocated."""

from __future__ import annotations

import math
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import check_regular

_BROKEN = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, OverflowError)
_OF_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)  # the last: an unknown compression
_DEFLATE_LIMIT = 1100  # deflate compresses by 1032 at most, so a larger ratio in the directory is false
_MOST_RATIO = 200  # most that arrays of _ANY_RATIO bytes or more may be compressed
_ANY_RATIO = 64 << 20  # unpacked bytes up to which any ratio is accepted
_MOST_MEMBERS = 100_000
_BLOCK = 64 << 20  # bytes that are transposed at a time, for arrays in Fortran order
_PARSING = threading.Lock()
"""numpy reads headers with Python's parser, which may fail in two threads at once (up to 3.11 and in early 3.12)."""

Headers = Mapping[str, NDArray[Any]]
"""Arrays of the shapes and dtypes that headers state. They take no memory: each is one zero, broadcast."""
Check = Callable[[Headers], None]
"""Raises an error where arrays of these shapes and dtypes cannot be samples of the model."""


@dataclass(frozen=True, slots=True)
class _Member:
    """The header of one array in a file.

    Attributes:
        shape, dtype: of the array.
        fortran: whether its values are in Fortran order.
        header: bytes before the values.
        info: its entry in an .npz; None for an .npy.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    header: int
    info: zipfile.ZipInfo | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stated(self) -> NDArray[Any]:
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


class FileArray:
    """An array in a file, in C order, whose rows are read when they are asked for.

    The file is not mapped into memory: if a mapped file is truncated, the process is killed by SIGBUS.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self._path, self._offset = path, offset
        self._file = path.open("rb")
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: int | slice) -> NDArray[Any]:
        """One row, or a slice of rows with step 1. Raises ValueError where the file has been truncated."""
        start, stop, _ = at.indices(len(self)) if isinstance(at, slice) else (at, at + 1, 1)
        rows = self._read(start, max(stop, start))
        return rows if isinstance(at, slice) else rows[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows. Raises ValueError where the file has been truncated."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = bytearray((stop - start) * row)
        with self._one_at_a_time:
            self._file.seek(self._offset + start * row)
            got = self._file.readinto(data)
        if got != len(data):
            raise ValueError(f"{self._path} ends too early: it was cut short while it was read")
        return np.ndarray((stop - start, *self.shape[1:]), self.dtype, data)


def open_npy(path: Path, spool: Path, check: Check, name: str = "") -> FileArray | NDArray[Any]:
    """Open the array of a .npy file without reading its values.

    Args:
        path: the file.
        spool: folder for a copy in C order, made where the array is in Fortran order.
        check: called with the header before anything else is read.
        name: name of the array, for `check`.

    Raises:
        CalibrationError: the file is broken, or holds Python objects.
    """
    with _named(path):
        member = _npy_member(path)
    check({name: member.stated})
    with _named(path):
        return _opened(path, member.header, member, spool / "turned.npy")


def read_npy(path: Path, check: Check, name: str = "") -> NDArray[Any]:
    """Read the array of a .npy file into memory. Raises as `open_npy`."""
    with _named(path):
        member = _npy_member(path)
    check({name: member.stated})
    with _named(path), path.open("rb") as stream:
        return _values(stream, member)


def read_npz(path: Path, check: Check | None = None) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file into memory.

    Args:
        path: the file.
        check: called with the headers before anything is unpacked.

    Raises:
        CalibrationError: the file is broken, or holds Python objects.
    """
    with _named(path):
        members = _npz_members(path)
    if check is not None:
        check({name: member.stated for name, member in members.items()})
    arrays = {}
    with _named(path), zipfile.ZipFile(path) as archive:
        for name, member in members.items():
            assert member.info is not None
            with archive.open(member.info) as stream:
                arrays[name] = _values(stream, member)
                _to_the_end(stream)
    return arrays


def open_npz(path: Path, spool: Path, check: Check) -> dict[str, FileArray | NDArray[Any]]:
    """Open all arrays of an .npz file without loading them into memory.

    Uncompressed arrays are read in place; their bytes are read once here to verify checksums.

    Args:
        path: the file.
        spool: folder that compressed arrays are unpacked into.
        check: called with the headers before anything is unpacked.

    Raises:
        CalibrationError: the file is broken, or holds Python objects.
    """
    with _named(path):
        members = _npz_members(path)
    check({name: member.stated for name, member in members.items()})
    arrays: dict[str, FileArray | NDArray[Any]] = {}
    with _named(path), zipfile.ZipFile(path) as archive:
        for index, (name, member) in enumerate(members.items()):
            assert member.info is not None
            if not member.nbytes or not member.shape:
                with archive.open(member.info) as stream:  # empty arrays and scalars are read now
                    arrays[name] = _values(stream, member)
                    _to_the_end(stream)
                continue
            file, offset = path, member.header
            if member.info.compress_type == zipfile.ZIP_STORED:
                offset += _data_offset(path, member.info)
                with archive.open(member.info) as stream:  # only zipfile verifies checksums, and rows bypass it
                    _to_the_end(stream)
            else:
                file = spool / f"{index}.npy"
                _refuse_full(spool, member.info.file_size, name)
                with archive.open(member.info) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
            arrays[name] = _opened(file, offset, member, spool / f"{index}.turned.npy")
    return arrays


def _opened(file: Path, offset: int, member: _Member, turned: Path) -> FileArray | NDArray[Any]:
    """The array at an offset of a file; one in Fortran order is first copied to `turned` in C order."""
    if not member.nbytes or not member.shape:
        with file.open("rb") as stream:
            stream.seek(offset - member.header)
            return _values(stream, member)
    if not member.fortran or len(member.shape) == 1:
        return FileArray(file, offset, member.shape, member.dtype)
    _refuse_full(turned.parent, member.nbytes, file.name)
    # The bytes of an array in Fortran order are those of its transpose in C order.
    columns = FileArray(file, offset, member.shape[::-1], member.dtype)
    made = np.memmap(turned, member.dtype, "w+", shape=member.shape)
    each = max(1, _BLOCK * len(columns) // member.nbytes)
    for start in range(0, len(columns), each):
        made[..., start : start + each] = columns[start : start + each].T
    made.flush()
    columns.close()
    return FileArray(turned, 0, member.shape, member.dtype)


def _refuse_full(folder: Path, size: int, name: str) -> None:
    if size > shutil.disk_usage(folder).free:
        raise ValueError(f"no room in {folder} to unpack {size} bytes of {name!r}")


def _npy_member(path: Path) -> _Member:
    size = check_regular(path, "the array", CalibrationError)
    with path.open("rb") as stream:
        member = _header(stream, "the file")
    if member.header + member.nbytes > size:
        stated = f"{member.dtype} {list(member.shape)}"
        raise ValueError(f"its header says {stated}, {member.nbytes} bytes; {size - member.header} are there")
    return member


def _npz_members(path: Path) -> dict[str, _Member]:
    members = {}
    size = check_regular(path, "the archive", CalibrationError)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > _MOST_MEMBERS:
            raise ValueError(f"it holds {len(infos)} arrays, more than {_MOST_MEMBERS}")
        for info in infos:
            with archive.open(info) as stream:
                found = _header(stream, info.filename)
            stated = f"{info.filename} says {found.dtype} {list(found.shape)}"
            if found.header + found.nbytes != info.file_size or info.file_size > size * _DEFLATE_LIMIT:
                raise ValueError(f"{stated} but holds {info.file_size} bytes")
            if found.nbytes > _ANY_RATIO and found.nbytes > _MOST_RATIO * info.compress_size:
                raise ValueError(f"{stated}, packed into {info.compress_size} bytes: all its values are equal")
            name = info.filename.removesuffix(".npy")
            members[name] = _Member(found.shape, found.fortran, found.dtype, found.header, info)
    return members


def _header(stream: IO[bytes], name: str) -> _Member:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version[0]}.{version[1]} is for named fields, not plain arrays")
    first = version == (1, 0)
    with _PARSING:
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never unpickled; save plain arrays")
    if any(size < 0 for size in shape) or not dtype.itemsize or dtype.names is not None:
        raise ValueError(f"{name} says {dtype} {list(shape)}, which is not a plain array")
    return _Member(tuple(map(int, shape)), fortran, dtype, stream.tell())


def _values(stream: IO[bytes], member: _Member) -> NDArray[Any]:
    """Read the values of an array whose header is known."""
    stream.read(member.header)
    data = bytearray(member.nbytes)
    view, got = memoryview(data), 0
    while got < len(data) and (block := stream.readinto(view[got:])):  # type: ignore[attr-defined]  # of IO[bytes]
        got += block
    if got != len(data):
        raise ValueError(f"it ends after {got} of {len(data)} bytes")
    return np.ndarray(member.shape, member.dtype, data, order="F" if member.fortran else "C")


def _to_the_end(stream: IO[bytes]) -> None:
    """Read the rest of a member, so that zipfile verifies its checksum. Raises BadZipFile."""
    while stream.read(1 << 20):
        pass


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Offset of a member's data, which follows a local header of its own lengths (APPNOTE 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise on a broken file into a CalibrationError that names the file."""
    try:
        yield
    except (*_BROKEN, *_OF_ZIP) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "save plain arrays" if "pickle" in reason or "object" in reason else "write it again"
        raise CalibrationError(f"{path} cannot be read: {reason}", hint) from error
