"""Write a model into one .onnx file with one weight in memory at a time.

The bytes are those that protobuf writes: every field once, by its number, and one graph field. Source: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from onnxshot.graph import weights
from onnxshot.graph.ir import Constant
from onnxshot.graph.model import Model
from onnxshot.graph.weight_pieces import raw_pieces
from onnxshot.graph.wire_format import head

_GRAPH, _INITIALIZER, _RAW = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto
_LEAST = 64 << 10  # bytes; smaller weights are held while the file is written


def write_streamed(model: Model, path: Path) -> None:
    """Write the model with all its weights. The caller sees to it that it is below protobuf's limit of 2 GiB.

    Raises:
        OSError: the file cannot be written.
        ModelError: a weight cannot be read any more.
    """
    kept: list[TensorProto | Constant] = []

    def store(constant: Constant) -> None:
        is_large = weights.size_bytes(constant) >= _LEAST and _has_raw_form(constant)
        kept.append(constant if is_large else weights.to_proto(constant))

    proto = model.export(store)
    before, after = _split(proto.graph, _INITIALIZER)
    sizes = [one.ByteSize() if isinstance(one, TensorProto) else _size(one) for one in kept]
    length = len(before) + len(after) + sum(len(head(_INITIALIZER, size)) + size for size in sizes)
    proto.ClearField("graph")
    first, last = _split(proto, _GRAPH)
    with path.open("wb") as file:
        file.write(first + head(_GRAPH, length) + before)
        for one, size in zip(kept, sizes, strict=True):
            file.write(head(_INITIALIZER, size))
            if isinstance(one, TensorProto):
                file.write(one.SerializeToString(deterministic=True))
            else:
                _write(one, file.write)
        file.write(after + last)


def _has_raw_form(constant: Constant) -> bool:
    """Whether the values are written as raw_data; those of the given file keep the form they have there."""
    values = constant._values
    if weights.elem_type(constant) == TensorProto.STRING:
        return False
    return not isinstance(values, weights.StoredValues) or values.mapped or values.tensor.HasField("raw_data")


def _parts(constant: Constant) -> tuple[bytes, bytes]:
    """What stands before and behind the raw data of a tensor."""
    values = constant._values
    proto = TensorProto()
    if isinstance(values, weights.StoredValues) and not values.external:
        for field, value in values.tensor.ListFields():
            if field.name in ("raw_data", "external_data", "data_location"):
                continue
            if field.is_repeated:
                getattr(proto, field.name).MergeFrom(value)
            else:
                setattr(proto, field.name, value)
    else:
        proto.data_type = weights.elem_type(constant)
        proto.dims.extend(constant.shape)
    proto.name = constant.name
    return _split(proto, _RAW)


def _size(constant: Constant) -> int:
    length = weights.size_bytes(constant)
    return sum(map(len, _parts(constant))) + len(head(_RAW, length)) + length


def _write(constant: Constant, write: Callable[[bytes | memoryview], object]) -> None:
    before, after = _parts(constant)
    write(before + head(_RAW, weights.size_bytes(constant)))
    for piece in raw_pieces(constant):
        write(piece)
    write(after)


def _split(message: Message, number: int) -> tuple[bytes, bytes]:
    """The serialized fields below and above a number, without the field itself."""
    low, high = type(message)(), type(message)()
    low.CopyFrom(message)
    high.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            low.ClearField(field.name)
        if field.number <= number:
            high.ClearField(field.name)
    if isinstance(high, ModelProto | TensorProto):
        high.DiscardUnknownFields()
    low.DiscardUnknownFields()
    return low.SerializeToString(deterministic=True), high.SerializeToString(deterministic=True)
