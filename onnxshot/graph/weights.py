"""Read and write weights one at a time, so that large models need not fit into memory.

graphsurgeon loads the values of a constant once and keeps them. The values here are loaded at every `read`, from the
parsed file or mapped from external data, and are not kept. int4 is packed by `maths.int4_packing.pack_int4`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxshot.errors import ModelError
from onnxshot.files.regular_files import check_regular, is_special
from onnxshot.graph.own_file import OwnFile
from onnxshot.maths.int4_packing import pack_int4

EXTERNAL_LIMIT = 1 << 30
"""Bytes of weights above which a model is written with external data. protobuf's own limit is 2 GiB."""

MAX_RANK = 32
"""Largest number of dimensions of a weight; numpy itself allows 64."""

PIECE = 1 << 24
"""Bytes that are copied at a time."""

_KEPT = 256  # bytes of values in memory that are decoded once: limits of Clips, axes, shapes
_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
PACKED = {  # bits per element of the types that ONNX packs, several elements to a byte
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    getattr(TensorProto, "INT2", -1): 2,
    getattr(TensorProto, "UINT2", -1): 2,
    getattr(TensorProto, "FLOAT6E2M3", -1): 6,
    getattr(TensorProto, "FLOAT6E3M2", -1): 6,
}


def stored_bytes(elem_type: int, shape: tuple[int, ...]) -> int:
    """Return the size of a dense tensor in raw_data or external data, in bytes; types below 8 bits are packed."""
    count = math.prod(shape)
    if elem_type in PACKED:
        return -(-count * PACKED[elem_type] // 8)
    return count * int(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


class StoredValues(LazyValues):  # type: ignore[misc]  # graphsurgeon ships no types
    """Values of a TensorProto, in the model or in external data. `load` reads them every time and keeps nothing.

    Args:
        proto: the tensor.
        folder: folder of external data; None where the model was given as an object.
        own: the .onnx file itself, where the model was parsed without its large weights. A tensor whose external data
            has its name as location is read from it.

    Attributes:
        file: the file that the values are in, as it was when this was made; None where they are in memory. Values are
            never read from a file that has changed since.

    Raises:
        ModelError: type, shape and stored values contradict each other, or external data is missing.
    """

    def __init__(self, proto: TensorProto, folder: Path | None, own: OwnFile | None = None) -> None:
        self.tensor = proto
        self.shape = list(proto.dims)
        self.elem_type = proto.data_type
        self.folder = folder
        self.own = own if own is not None and _entries(proto).get("location") == own.name else None
        self.file = self.own
        self.nbytes = self._check()
        self._kept: NDArray[Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy or ml_dtypes dtype of the values."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.elem_type))

    @property
    def path(self) -> Path | None:
        """The file the values are read from; None where they are in memory."""
        return self.place()[0] if self.mapped else None

    @property
    def external(self) -> bool:
        """Whether the values are in an external data file, beside the .onnx file."""
        return self.mapped and self.own is None

    @property
    def mapped(self) -> bool:
        """Whether the values are in a file, external data or the .onnx file itself, and not in memory."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    def _check(self) -> int:
        """Refuse contradictions; return the size in bytes, 0 for strings."""
        proto = self.tensor
        where = f"tensor {proto.name!r}"
        if proto.data_type not in _TYPES:
            raise ModelError(f"{where}: unknown data type {proto.data_type}")
        if any(d < 0 for d in proto.dims):
            raise ModelError(f"{where}: negative dimension in {list(proto.dims)}")
        if len(proto.dims) > MAX_RANK or math.prod(d for d in proto.dims if d) >= 1 << 59:
            raise ModelError(f"{where}: {len(proto.dims)} dimensions, too large for any memory: {list(proto.dims[:8])}")
        if proto.HasField("segment"):
            raise ModelError(f"{where}: it is stored in segments, which no runtime reads")
        if proto.data_type == TensorProto.STRING:
            if self.mapped or proto.HasField("raw_data"):
                raise ModelError(f"{where}: strings are stored as bytes or outside the model, which ONNX forbids")
            if len(proto.string_data) != math.prod(proto.dims):
                raise ModelError(f"{where}: {len(proto.string_data)} strings stored for shape {list(proto.dims)}")
            return 0
        expected = stored_bytes(proto.data_type, tuple(proto.dims))
        if self.mapped:
            _, _, length = self.place()
            if length != expected:
                found = f"its external data has {length}" if self.own is None else f"{length} are stored"
                raise ModelError(f"{where}: shape {list(proto.dims)} needs {expected} bytes, {found}")
        elif proto.HasField("raw_data"):
            if len(proto.raw_data) != expected:
                raise ModelError(
                    f"{where}: shape {list(proto.dims)} needs {expected} bytes, {len(proto.raw_data)} are stored"
                )
        else:
            field = helper.tensor_dtype_to_field(proto.data_type)
            stored = len(getattr(proto, field))
            needed = math.prod(proto.dims)
            if proto.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
                needed *= 2
            elif PACKED.get(proto.data_type) in (2, 4):
                needed = expected  # one entry per byte
            if stored != needed:
                raise ModelError(f"{where}: shape {list(proto.dims)} needs {needed} values, {stored} are stored")
        return expected

    @property
    def data_folder(self) -> Path | None:
        """The folder of the file that the values are in, which `to_reference` names; None where they are in memory."""
        return None if not self.mapped else self.folder if self.own is None else self.own.path.parent

    def place(self) -> tuple[Path, int, int]:
        """File, offset and length of external data, checked to lie inside the model's folder and inside the file.

        Raises:
            ModelError: they do not, or the file was changed since the model was loaded.
        """
        entries = _entries(self.tensor)
        where = f"tensor {self.tensor.name!r}"
        location = entries.get("location", "")
        if self.file is not None:
            self.file.check()
            path = self.file.path
        elif self.folder is None:
            raise ModelError(f"{where} is stored outside a model given as an object", "load the model from its path")
        else:
            path = inside(self.folder, location, where)
            self.file = OwnFile.of(path, location)
        try:
            offset = int(entries.get("offset", 0))
            size = self.file.size
            length = int(entries.get("length", size - offset))
        except ValueError as e:
            raise ModelError(f"{where}: offset or length of its external data is not a number") from e
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(f"{where}: bytes {offset}..{offset + length} are beyond {location!r} of {size} bytes")
        return path, offset, length

    def load(self) -> NDArray[Any]:
        """Load the values. Those in a file are memory-mapped read-only, until the caller drops the array.

        Those that are not aligned in the file, as numpy and BLAS need it, are copied.
        """
        if self.elem_type == TensorProto.STRING:
            return np.array(list(map(_text, self.tensor.string_data)), object).reshape(self.shape)
        if self._kept is not None:
            return self._kept
        if not self.mapped:
            values = np.asarray(numpy_helper.to_array(self.tensor))
            if values.nbytes <= _KEPT:
                values.flags.writeable = False
                self._kept = values
            return values
        path, offset, length = self.place()
        if self.elem_type in PACKED or length == 0:
            return np.asarray(numpy_helper.to_array(self._held(path, offset, length)))
        if offset % self.dtype.alignment:
            return _bytes_at(path, offset, length).view(self.dtype).reshape(self.shape)
        return np.memmap(path, self.dtype, "r", offset, tuple(self.shape))

    @property
    def reads_rows(self) -> bool:
        """Whether `rows` reads no more than the rows asked for."""
        return self.mapped and self.elem_type not in PACKED

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read some rows along the first axis. Those in a file are read, not mapped."""
        if not self.reads_rows:
            return self.load()[start:stop]
        shape = (stop - start, *self.shape[1:])
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        path, offset, _ = self.place()
        return _bytes_at(path, offset + start * size, shape[0] * size).view(self.dtype).reshape(shape)

    def held(self) -> TensorProto:
        """The tensor with its values in it, as `raw_data` where they are in a file."""
        return self._held(*self.place()) if self.mapped else self.tensor

    def _held(self, path: Path, offset: int, length: int) -> TensorProto:
        proto = TensorProto()
        proto.CopyFrom(self.tensor)
        del proto.external_data[:]
        proto.ClearField("data_location")
        with path.open("rb") as f:
            f.seek(offset)
            proto.raw_data = f.read(length)
        return proto

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of values in a file in pieces. They are read, not mapped, so that none stay in memory."""
        path, offset, length = self.place()
        with path.open("rb") as f:
            f.seek(offset)
            for start in range(0, length, PIECE):
                yield f.read(min(PIECE, length - start))


def _bytes_at(path: Path, offset: int, length: int) -> NDArray[np.uint8]:
    """Bytes of a file as an aligned array.

    Raises:
        ModelError: the file has become shorter.
    """
    with path.open("rb") as f:
        f.seek(offset)
        read = np.fromfile(f, np.uint8, length)
    if read.size != length:
        raise ModelError(f"{path} was cut off while it was read", "run again, and leave it as it is until then")
    return read


def _entries(proto: TensorProto) -> dict[str, str]:
    return {e.key: e.value for e in proto.external_data}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value  # ONNX wants UTF-8; runtimes carry any bytes


class ComputedValues(LazyValues):  # type: ignore[misc]  # graphsurgeon ships no types
    """Values that are computed whenever they are read, such as a quantized weight; they are never kept.

    Args:
        shape: shape of the values.
        dtype: their numpy or ml_dtypes dtype.
        compute: computes the values.
        rows: computes the rows `start` to `stop` along the first axis alone, equal to those of `compute`. None where
            they take all of it.
        widened: the constant of a narrower type that holds the same numbers, if there is one.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], compute: Callable[[], NDArray[Any]],
        rows: Callable[[int, int], NDArray[Any]] | None = None, widened: gs.Constant | None = None,
    ) -> None:  # fmt: skip
        self.shape = list(shape)
        self.dtype = np.dtype(dtype)
        self.elem_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nbytes = stored_bytes(self.elem_type, shape)
        self._compute = compute
        self._rows = rows
        self.widened = widened

    @property
    def reads_rows(self) -> bool:
        """Whether `rows` computes no more than the rows asked for."""
        return self._rows is not None

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Compute some rows along the first axis."""
        return self._compute()[start:stop] if self._rows is None else self._rows(start, stop)

    def load(self) -> NDArray[Any]:
        """Compute the values."""
        return self._compute()


def inside(folder: Path, location: str, where: str) -> Path:
    """Return the path of an existing external data file.

    Args:
        folder: the folder of the model.
        location: the file, relative to the folder.
        where: what the data belongs to, for messages.

    Raises:
        ModelError: the file is missing, or outside the folder, also through a link.
    """
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        raise ModelError(
            f"{where}: external data at {location!r} is outside the model's folder",
            "keep the data file beside the model",
        )
    try:
        root = folder.resolve()
        path = (root / location).resolve()
        found = path.is_file()
    except (OSError, RuntimeError, ValueError) as e:  # a name too long, a loop of links, a zero byte
        raise ModelError(f"{where}: external data at {location[:80]!r} cannot be opened") from e
    if not path.is_relative_to(root):
        raise ModelError(f"{where}: external data at {location!r} leads out of the model's folder through a link")
    if not found and is_special(path):
        check_regular(path, f"{where}: its external data file", ModelError)
    if not found:
        raise ModelError(f"{where}: its external data file {location!r} is missing", "copy it beside the model")
    return path


def read(constant: gs.Constant) -> NDArray[Any]:
    """Return the values of a constant. A lazy one loads or computes them, and does not keep them."""
    values = constant._values
    return values.load() if isinstance(values, LazyValues) else np.asarray(values)


def size_bytes(constant: gs.Constant) -> int:
    """Return the size of a constant's values as stored, in bytes."""
    return int(constant._values.nbytes)


def elem_type(constant: gs.Constant) -> int:
    """Return the ONNX element type of a constant (TensorProto.DataType)."""
    values = constant._values
    if isinstance(values, StoredValues | ComputedValues):
        return int(values.elem_type)
    return int(helper.np_dtype_to_tensor_dtype(values.dtype))


def to_proto(constant: gs.Constant) -> TensorProto:
    """Return the constant as a TensorProto that contains its values; an unchanged tensor of the file as it is there."""
    values = constant._values
    if isinstance(values, StoredValues) and not values.external:
        held = values.held()
        if held.name == constant.name:
            return held
        proto = TensorProto()
        proto.CopyFrom(held)
        proto.name = constant.name
        return proto
    return _array_proto(np.asarray(read(constant), order="C"), constant.name)  # keeps scalars scalar


def _array_proto(array: NDArray[Any], name: str) -> TensorProto:
    """The array as a TensorProto; int4 and uint4 are packed here, two values to a byte."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return TensorProto(name=name or None, data_type=kind, dims=array.shape, raw_data=pack_int4(array))
    return numpy_helper.from_array(array, name)


def to_reference(constant: gs.Constant) -> TensorProto:
    """Return the constant as a TensorProto whose values stay in their file, where they are in one."""
    values = constant._values
    if not isinstance(values, StoredValues) or not values.mapped:
        return to_proto(constant)
    proto = TensorProto()
    proto.CopyFrom(values.tensor)
    proto.name = constant.name
    if values.own is not None:  # ONNX Runtime refuses links out of the folder: name what the link leads to
        next(e for e in proto.external_data if e.key == "location").value = values.own.path.name
    return proto
