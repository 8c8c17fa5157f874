"""A model whose large weights are not in memory: small to copy, to edit and to cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxshot.errors import ModelError
from onnxshot.graph import weights as stored
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_parse import parse_lean
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model
from onnxshot.graph.own_file import OwnFile

INLINE = 4096
"""Bytes up to which a weight stays in the proto: shapes, axes, scales, biases of small layers."""
_MOST_PROTO = (1 << 31) - (1 << 24)  # bytes; protobuf's limit is 2 GiB

Source = Path | bytes | ModelProto | Model


@dataclass(frozen=True, eq=False)
class LeanModel:
    """A ModelProto without its large weights, and those weights, which are read when they are needed.

    Copies share the weights. Neither the proto nor the weights of a LeanModel are ever changed.

    Attributes:
        proto: The model without the initializers in `weights`; small initializers are in it.
        weights: Initializers of the top-level graph with more than INLINE bytes, by name. Their values are mapped from
            the file, or computed at each read.
        label: How messages name the model.
    """

    proto: ModelProto
    weights: Mapping[str, Constant]
    label: str = "the model in memory"

    @classmethod
    def of(cls, source: Source | LeanModel) -> LeanModel:
        """Make a lean model.

        Args:
            source: A file, a serialized model, a proto, which is not changed, or a graph. External data stays in its
                files.

        Raises:
            ModelError: The model cannot be read, or a weight in it is invalid.
        """
        if isinstance(source, LeanModel):
            return source
        if isinstance(source, Model):
            return _of_graph(source)
        if isinstance(source, ModelProto):
            return _of_proto(source, None)
        try:
            if isinstance(source, bytes):
                return _of_proto(onnx.load_from_string(source), None)
            own = OwnFile.of(source)
            proto = parse_lean(source)
        except (OSError, DecodeError, ValueError) as e:
            what = str(source) if isinstance(source, Path) else "the model in memory"
            raise ModelError(f"{what} cannot be read: {first_line(e)}") from e
        return replace(_of_proto(proto, source.parent, own), label=str(source))

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all large weights."""
        return sum(map(stored.size_bytes, self.weights.values()))

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        """The small initializers, by name."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def holds(self, name: str) -> bool:
        """Whether a name is that of an initializer."""
        return name in self.weights or name in self.initializers

    def array(self, name: str) -> NDArray[Any]:
        """Read the values of an initializer. Those of a large one are not kept. Raises KeyError for other names."""
        if name in self.weights:
            return stored.read(self.weights[name])
        return numpy_helper.to_array(self.initializers[name])

    def kind_of(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Return the element type (TensorProto.DataType) and the shape of an initializer, without reading its values.

        Raises KeyError for other names.
        """
        if name in self.weights:
            return stored.elem_type(self.weights[name]), tuple(self.weights[name].shape)
        tensor = self.initializers[name]
        return tensor.data_type, tuple(tensor.dims)

    def edited(self, change: Callable[[ModelProto], object]) -> LeanModel:
        """Return a copy whose proto `change` has edited. It cannot see large weights."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        change(proto)
        return replace(self, proto=proto)

    def outline(self) -> ModelProto:
        """Return the model with initializers of name, type and shape, but no values, in place of the large weights."""
        return self.to_proto(_outlined)

    def in_shape_of(self, proto: ModelProto) -> LeanModel:
        """Return the model that an edited `outline` describes; the proto is changed."""
        small = [tensor for tensor in proto.graph.initializer if tensor.name not in self.weights]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(small)
        return replace(self, proto=proto)

    def to_graph(self) -> Model:
        """Return the model as a graph, which shares the weights."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        listed = {info.name for info in proto.graph.input}
        for name, constant in self.weights.items():
            if name not in listed:
                info = helper.make_tensor_value_info(name, stored.elem_type(constant), constant.shape)
                proto.graph.input.append(info)
        return Model(proto, lifted=self.weights)

    def with_outputs(self, names: Iterable[str]) -> LeanModel:
        """Return a copy with these tensors as its outputs, each once; with its own outputs if there are no names."""
        return self._with_outputs(dict.fromkeys(names), keep=False)

    def exposing(self, names: Iterable[str]) -> LeanModel:
        """Return a copy that has these tensors as outputs beside its own."""
        return self._with_outputs(dict.fromkeys(names), keep=True)

    def _with_outputs(self, names: Iterable[str], *, keep: bool) -> LeanModel:
        known = {info.name: info for info in self.proto.graph.output}
        wanted = [known.get(name, ValueInfoProto(name=name)) for name in names if not (keep and name in known)]

        def change(proto: ModelProto) -> None:
            if wanted and not keep:
                del proto.graph.output[:]
            proto.graph.output.extend(wanted)

        return self.edited(change)

    def replaced(self, values: Mapping[str, NDArray[Any]]) -> LeanModel:
        """Return a copy with other values of some initializers, by name. The arrays are kept as they are."""
        large = {name: value for name, value in values.items() if name in self.weights}
        small = {name: value for name, value in values.items() if name not in self.weights}

        def change(proto: ModelProto) -> None:
            for tensor in proto.graph.initializer:
                if tensor.name in small:
                    tensor.CopyFrom(numpy_helper.from_array(np.asarray(small[tensor.name]), tensor.name))

        copy = self.edited(change) if small else self
        return replace(copy, weights={**self.weights, **{name: Constant(name, array) for name, array in large.items()}})

    def to_proto(self, store: Callable[[Constant], TensorProto] | None = None) -> ModelProto:
        """Return the model in one proto; `store` turns each large weight into its TensorProto, by default with values.

        Raises:
            ModelError: With its values, it would exceed protobuf's limit of 2 GiB.
        """
        if store is None and self.weight_bytes > _MOST_PROTO:
            raise ModelError(f"{self.label} is over 2 GiB and does not fit one ModelProto")
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for constant in self.weights.values():
            proto.graph.initializer.append((store or stored.to_proto)(constant))
        return proto


def _outlined(constant: Constant) -> TensorProto:
    kind = stored.elem_type(constant)
    return TensorProto(
        name=constant.name, data_type=kind, dims=constant.shape, data_location=TensorProto.EXTERNAL
    )  # fmt: skip


def _of_graph(model: Model) -> LeanModel:
    large: dict[str, Constant] = {}

    def store(constant: Constant) -> TensorProto | None:
        if stored.size_bytes(constant) <= INLINE:
            return stored.to_proto(constant)
        large[constant.name] = Constant(constant.name, constant._values)  # passes rename and refill the graph's own
        return None

    proto = model.export(store)
    return LeanModel(proto, large, str(model.path) if model.path is not None else "the model in memory")


def _of_proto(given: ModelProto, folder: Path | None, own: OwnFile | None = None) -> LeanModel:
    """A lean model that shares the large tensors of a proto."""
    proto, large = ModelProto(), dict[str, Constant]()
    for field, value in given.ListFields():
        if field.name != "graph":
            _copy_field(proto, field.name, value, repeated=field.is_repeated, message=bool(field.message_type))
    for field, value in given.graph.ListFields():
        if field.name != "initializer":
            _copy_field(proto.graph, field.name, value, repeated=field.is_repeated, message=bool(field.message_type))
    for tensor in given.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or _is_large(tensor):
            large[tensor.name] = Constant(tensor.name, stored.StoredValues(tensor, folder, own))
        else:
            proto.graph.initializer.append(tensor)
    small = [c for c in large.values() if stored.size_bytes(c) <= INLINE]
    for constant in small:  # small external data: values that the graph's shapes depend on
        proto.graph.initializer.append(stored.to_proto(constant))
        del large[constant.name]
    return LeanModel(proto, large)


def _is_large(tensor: TensorProto) -> bool:
    known = tensor.data_type in TensorProto.DataType.values() and tensor.data_type not in (
        TensorProto.UNDEFINED, TensorProto.STRING
    )  # fmt: skip
    return known and stored.stored_bytes(tensor.data_type, tuple(tensor.dims)) > INLINE


def _copy_field(proto: Any, name: str, value: Any, *, repeated: bool, message: bool) -> None:
    if repeated:
        getattr(proto, name).MergeFrom(value)
    elif message:
        getattr(proto, name).CopyFrom(value)
    else:
        setattr(proto, name, value)


def input_dtype(info: ValueInfoProto) -> np.dtype[Any] | None:
    """The numpy dtype of a tensor that a model states; None if it is no tensor, or its type is unknown."""
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.elem_type:
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
