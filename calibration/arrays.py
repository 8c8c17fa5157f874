"""Reading .npy and .npz files that may be broken or hostile: sizes are checked before memory is taken."""

from __future__ import annotations

import math
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import CalibrationError

_BROKEN = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError)
_DEFLATE_LIMIT = 1100  # deflate cannot shrink more than 1032 times: anything above is a lie in the directory
_PARSING = threading.Lock()
"""numpy reads headers with Python's parser, which up to 3.11 and in early 3.12 may fail where two threads use it."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One array of an .npz: where it lies and what its header says."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    header: int  # bytes before the values


def map_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped read-only: nothing is read yet. CalibrationError: broken or Python objects."""
    with _named(path), _PARSING:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file, read into memory. CalibrationError: broken, or Python objects."""
    arrays = {}
    with _named(path), zipfile.ZipFile(path) as archive:
        for name, member in _members(archive, path).items():
            with archive.open(member.info) as stream:
                arrays[name] = _values(stream, member)
    return arrays


def map_npz(path: Path, spool: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file, mapped: in place where stored, unpacked into the folder `spool` where compressed."""
    arrays: dict[str, NDArray[Any]] = {}
    with _named(path), zipfile.ZipFile(path) as archive:
        for index, (name, member) in enumerate(_members(archive, path).items()):
            if 0 in member.shape or not member.shape:
                with archive.open(member.info) as stream:  # nothing to map
                    arrays[name] = _values(stream, member)
                continue
            file, offset = path, member.header
            if member.info.compress_type == zipfile.ZIP_STORED:
                offset += _data_offset(path, member.info)
            else:
                file = spool / f"{index}.npy"
                if member.info.file_size > shutil.disk_usage(spool).free:
                    raise ValueError(f"no room to unpack {member.info.file_size} bytes of {name!r}")
                with archive.open(member.info) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
            arrays[name] = np.memmap(file, member.dtype, "r", offset, member.shape, "F" if member.fortran else "C")
    return arrays


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, _Member]:
    members = {}
    size = path.stat().st_size
    for info in archive.infolist():
        with archive.open(info) as stream:
            shape, fortran, dtype = _header(stream)
            header = stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are never unpickled; save plain arrays")
        if header + math.prod(shape) * dtype.itemsize != info.file_size or info.file_size > size * _DEFLATE_LIMIT:
            raise ValueError(f"{info.filename} says {dtype} {list(shape)} but holds {info.file_size} bytes")
        members[info.filename.removesuffix(".npy")] = _Member(info, shape, fortran, dtype, header)
    return members


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    with _PARSING:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"npy format {version[0]}.{version[1]} is for named fields, not plain arrays")


def _values(stream: IO[bytes], member: _Member) -> NDArray[Any]:
    """The array behind a header that was read before."""
    stream.read(member.header)
    data = bytearray(stream.read(math.prod(member.shape) * member.dtype.itemsize))
    return np.ndarray(member.shape, member.dtype, data, order="F" if member.fortran else "C")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """First byte of a member's data. The local header repeats name and extra at other lengths (APPNOTE 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever a broken file makes numpy and zipfile raise into one line that names the file."""
    try:
        yield
    except (*_BROKEN, zipfile.BadZipFile, zlib.error, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "save plain arrays" if "pickle" in reason or "object" in reason else "write it again"
        raise CalibrationError(f"{path} cannot be read: {reason}", hint) from error
