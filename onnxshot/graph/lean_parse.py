"""Parse an .onnx file without reading its large weights into memory.

The file is scanned as protobuf's wire format. Everything is handed to protobuf's own parser, but the raw data of large
weights of the top-level graph, which become external data in the .onnx file itself. A file with anything unusual is
parsed by protobuf as a whole, so that it gives protobuf's errors.

Sources: protobuf, Encoding; onnx.proto (field numbers of ModelProto, GraphProto and TensorProto).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnxshot.graph.wire_format import head

LEAST_WEIGHTS = 64 << 20
"""Bytes of large weights from which on they stay in the file. Fewer are held, so that the file may be changed."""

LEAST_TENSOR = 64 << 10
"""Bytes from which on a weight is large."""

_LONGEST = (1 << 31) - 1  # bytes of a protobuf message
_WINDOW = 64 << 10  # bytes that are read at once
_MOST_FIELDS = 64  # of a tensor: more are a rank that no weight has

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_GRAPH, _INITIALIZER = 7, 5  # fields of ModelProto and GraphProto
_OF_MODEL = {
    (field.number, _BYTES if field.type in (field.TYPE_STRING, field.TYPE_MESSAGE) else _VARINT)
    for field in ModelProto.DESCRIPTOR.fields
}
"""Number and wire type of each field of a model."""
_MOST_UNKNOWN = 1000  # fields of a newer version of ONNX: a file with more of them is no model
_MOST_KNOWN = 1 << 17  # opsets, functions and metadata
_RAW, _LITTLE_ENDIAN = 9, {4: TensorProto.FLOAT, 10: TensorProto.DOUBLE}  # fields of TensorProto: as raw data if packed


def parse_lean(path: Path) -> ModelProto:
    """Parse an .onnx file. Large weights of a large file become external data in this file.

    Args:
        path: the .onnx file.

    Returns:
        The model. A weight that stays in the file has `data_location` EXTERNAL, with the file's own name as location,
        an offset and a length. Neither other external data nor the values of such a weight are read.

    Raises:
        DecodeError: the file does not parse.
        OSError: it cannot be read.
    """
    try:
        path.name.encode()
        large = "\\" not in path.name and path.stat().st_size >= LEAST_WEIGHTS
    except UnicodeEncodeError:
        large = False  # the model could not name the file
    if large:
        if path.stat().st_size > _LONGEST:
            raise DecodeError("it is larger than 2 GiB")
        try:
            return _scanned(path)
        except _Unusual:
            pass
    return onnx.load(str(path), format="protobuf", load_external_data=False)


class _Unusual(Exception):
    """The file is damaged, or is written as no exporter writes it."""


class _File:
    """Bytes of an open file by their position. Every read is checked against the end of the message around it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._window, self._start = b"", 0
        self.size = os.fstat(file.fileno()).st_size

    def read(self, start: int, end: int) -> bytes:
        """The bytes `start` to `end`."""
        self._file.seek(start)
        found = self._file.read(end - start)
        if len(found) != end - start:
            raise _Unusual
        return found

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """(the number at a position, the position after it)."""
        if not self._start <= at <= self._start + len(self._window) - 10:
            self._file.seek(at)
            self._window, self._start = self._file.read(_WINDOW), at
        value = 0
        for i, byte in enumerate(self._window[at - self._start : min(end, at + 10) - self._start]):
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value, at + i + 1
        raise _Unusual

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """The fields of a message: (number, wire type, start with its tag, start of its content, end)."""
        while at < end:
            start = at
            tag, at = self.varint(at, end)
            number, kind = tag >> 3, tag & 7
            content = at
            if kind == _VARINT:
                _, at = self.varint(at, end)
            elif kind == _BYTES:
                length, content = self.varint(at, end)
                at = content + length
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise _Unusual  # a group, or no wire type
            if not number or at > end:
                raise _Unusual
            yield number, kind, start, content, at


def _scanned(path: Path) -> ModelProto:
    with path.open("rb") as opened:
        file = _File(opened)
        graph: tuple[int, int, int] | None = None
        unknown = known = 0
        for number, kind, start, content, end in file.fields(0, file.size):
            of_model = (number, kind) in _OF_MODEL
            known, unknown = known + of_model, unknown + (not of_model)
            # protobuf would keep them all, at many times the size of the file
            if unknown > _MOST_UNKNOWN or known > _MOST_KNOWN:
                raise DecodeError("its fields are not those of a model")
            if number == _GRAPH:
                if graph is not None or kind != _BYTES:
                    raise _Unusual  # protobuf would merge two graphs
                graph = start, content, end
        if graph is None:
            raise _Unusual
        kept: list[bytes] = []
        left, at = 0, graph[1]
        for number, kind, start, content, end in file.fields(*graph[1:]):
            if number == _INITIALIZER and kind == _BYTES and end - content >= LEAST_TENSOR:
                reference = _reference(file, content, end, path.name)
                if reference is not None:
                    kept += [file.read(at, start), head(_INITIALIZER, len(reference)), reference]
                    left, at = left + end - start, end
        if left < LEAST_WEIGHTS:
            raise _Unusual
        kept.append(file.read(at, graph[2]))
        length = sum(map(len, kept))
        parts = (file.read(0, graph[0]), head(_GRAPH, length), *kept, file.read(graph[2], file.size))
        kept.clear()
        return ModelProto.FromString(b"".join(parts))


def _reference(file: _File, start: int, end: int, name: str) -> bytes | None:
    """A tensor with its large data left in the file, serialized; None where it has none."""
    fields = list(itertools.islice(file.fields(start, end), _MOST_FIELDS + 1))
    if len(fields) > _MOST_FIELDS:
        return None
    large = [(number, start, content, end) for number, _, start, content, end in fields if end - content > LEAST_TENSOR]
    if len(large) != 1 or (large[0][0] != _RAW and large[0][0] not in _LITTLE_ENDIAN):
        return None
    number, start_of_large, content, end_of_large = large[0]
    if any(other[0] == number and other[2] != start_of_large for other in fields):
        return None  # protobuf would take the last, or join them
    tensor = TensorProto.FromString(file.read(start, start_of_large) + file.read(end_of_large, end))
    if number != _RAW and (tensor.data_type != _LITTLE_ENDIAN[number] or tensor.HasField("raw_data")):
        return None
    if tensor.external_data or tensor.HasField("data_location") or not _is_plain(tensor):
        return None
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", content), ("length", end_of_large - content)):
        tensor.external_data.add(key=key, value=str(value))
    return bytes(tensor.SerializeToString())


def _is_plain(tensor: TensorProto) -> bool:
    """Whether all its values would be in the large field."""
    other = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data, tensor.double_data)
    plain = not any(len(values) for values in (*other, tensor.uint64_data)) and not tensor.HasField("segment")
    return plain and tensor.data_type != TensorProto.STRING
