"""Find stored weights that ONNX Runtime dequantizes in every run: they save neither time nor memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TypeProto, helper

from onnxshot import memory
from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import weights
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel, Source
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_runtime import session
from onnxshot.runtimes.parts import Parts

_LEAST_VALUES = 64  # a smaller weight is dequantized in no time


def dequantized_weights(source: Source | LeanModel) -> set[str]:
    """Names of weights that a DequantizeLinear reads in ONNX Runtime's optimized graph.

    Only constants of two dimensions or more count. Empty if the model does not load; the proof reports that. A model
    with more than `memory.part_bytes()` of weights is optimized part by part, with zeros in place of its matrices: how
    nodes are fused does not depend on them.
    """
    model = LeanModel.of(source)
    if model.weight_bytes <= memory.part_bytes():
        return _found(model)
    blank = replace(model, weights={name: _blank(constant) for name, constant in model.weights.items()})
    parts, inputs = Parts(blank, memory.part_bytes()), _inputs(blank)
    outputs = {info.name for info in model.proto.graph.output}
    found: set[str] = set()
    for number, part in enumerate(parts.parts):
        made = [*part.passes, *(name for name in part.makes & outputs if name not in part.passes)]
        if part.nodes and made and all(name in inputs for name in part.reads):
            found |= _found(parts.model_of(number, made, {name: inputs[name] for name in part.reads}))
    return found


def _found(model: LeanModel) -> set[str]:
    with scratch() as home:
        at = home / "optimized.onnx"
        try:
            with serialized(model) as (source, folder):
                session(source, threads=1, save_optimized=at, folder=folder)
            optimized = onnx.load(str(at), load_external_data=False)
        except (ModelError, OSError, DecodeError, ValueError):
            return set()
    stored = {t.name: t.dims for t in optimized.graph.initializer}
    read = (node.input[0] for node in optimized.graph.node if node.op_type == "DequantizeLinear")
    return {n for n in read if len(stored.get(n, ())) > 1 and math.prod(stored[n]) >= _LEAST_VALUES}


def _blank(constant: Constant) -> Constant:
    """A matrix of zeros in place of a weight; the weight itself if it is a vector, such as scales."""
    shape, kind = tuple(constant.shape), weights.elem_type(constant)
    if len(shape) < 2:
        return constant
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return Constant(constant.name, weights.ComputedValues(shape, dtype, lambda: np.zeros(shape, dtype)))


def _inputs(model: LeanModel) -> Mapping[str, NDArray[Any]]:
    """An array of the type and rank of each tensor for which the model states them."""
    graph = model.proto.graph
    return {
        info.name: np.zeros((1,) * len(info.type.tensor_type.shape.dim), _dtype(info.type))
        for info in (*graph.value_info, *graph.input, *graph.output)
        if info.type.tensor_type.elem_type and info.type.tensor_type.HasField("shape")
    }


def _dtype(kind: TypeProto) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
