"""The final form of a model after removal: its storage types, its 16-bit tensors, and its size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot import memory
from onnxshot.channels.original import Original, Samples, sizes_of
from onnxshot.graph import Constant, Model, edit, weights
from onnxshot.graph.weight_pieces import by_rows
from onnxshot.passes.store_original_dtype import StoreOriginalDtype, narrowed
from onnxshot.rewriting.prepare import narrow


@dataclass(frozen=True, slots=True)
class Amount:
    """The size of a model: multiply-accumulates of one run, and number of float parameters."""

    macs: int
    params: int


def amount_of(model: Model, samples: Samples, threads: int) -> Amount:
    """Count multiply-accumulates, at the size of the first sample if there is one, and float parameters."""
    rows = sizes_of(model, samples, threads).work(model)
    params = sum(math.prod(c.shape) for c in model.constants() if c.dtype.kind == "f")
    return Amount(sum(row.macs for row in rows), params)


def restore_form(original: Original, model: Model) -> None:
    """Store weights in the types they had, and compute in 16 bits what the original computed in 16 bits."""
    _store_as(original.model, model)
    model.stated = original.model.stated
    model.renamed |= original.model.renamed
    narrow(model, original.widened)


def _rounded(kind: int, values: NDArray[Any]) -> NDArray[np.float32]:
    return narrowed(values, kind).astype(np.float32)


def _store_as(model: Model, smaller: Model) -> None:
    """Round the weights of the smaller model to the narrow storage types that they had in the model."""
    stored = model.stored_types()
    for constant in smaller.constants():
        if constant.name in stored and weights.elem_type(constant) == TensorProto.FLOAT:
            kind = stored[constant.name]
            held = Constant(constant.name, constant._values)
            rounded = by_rows(tuple(constant.shape), np.dtype(np.float32), [held], partial(_rounded, kind))
            # Those of a large weight are computed when they are read.
            constant._values = rounded if weights.size_bytes(constant) > memory.part_bytes() else rounded.load()
            constant.stored_as = kind
    StoreOriginalDtype().run(smaller)
    edit.toposort(smaller)
