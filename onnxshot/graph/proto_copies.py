"""Copies of a ModelProto with other outputs, or with other values of initializers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, numpy_helper


def with_outputs(model: ModelProto, names: Iterable[str]) -> bytes:
    """Return the serialized model with these tensors as its outputs, each once; with its own if `names` is empty."""
    other = ModelProto()
    other.CopyFrom(model)
    outputs = [ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    if outputs:
        del other.graph.output[:]
        other.graph.output.extend(outputs)
    return bytes(other.SerializeToString())


def with_initializers_serialized(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the serialized model with other values of some initializers, by name."""
    return bytes(with_initializers(model, values).SerializeToString())


def with_initializers(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> ModelProto:
    """Return a copy of the model with other values of some initializers, by name."""
    other = ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name]), tensor.name))
    return other
