"""Copies of a ModelProto that differ from it in one thing: what they give out, or what constants hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, numpy_helper


def with_outputs(model: ModelProto, names: Iterable[str]) -> bytes:
    """The model with these outputs only, each once; its own where there are none."""
    other = ModelProto()
    other.CopyFrom(model)
    outputs = [ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    if outputs:
        del other.graph.output[:]
        other.graph.output.extend(outputs)
    return bytes(other.SerializeToString())


def with_initializers_serialized(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> bytes:
    """The model with other values of the initializers of these names."""
    return bytes(with_initializers(model, values).SerializeToString())


def with_initializers(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> ModelProto:
    """A copy of the model with other values of the initializers of these names, not serialized."""
    other = ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name]), tensor.name))
    return other
