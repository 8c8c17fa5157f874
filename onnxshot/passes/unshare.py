"""Give every reader of a small vector one of its own, and let equal ones be one again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Model, weights
from onnxshot.passes.base import Change

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_VECTOR = 1 << 16  # bytes up to which a vector is copied: the biases and norms of wide layers


@dataclass(frozen=True, slots=True)
class Unshare:
    """Copy vectors that several nodes read: exporters store equal biases once, as those that are all zero.

    Layers that have nothing else in common are cut apart then. `Reshare` undoes what of it is left.
    """

    name: str = "unshare"

    def run(self, model: Model) -> Change:
        """Copy; edits counts the copies."""
        change = Change()
        readers: dict[Constant, int] = {}
        for node in model.graph.nodes:
            for slot, tensor in enumerate(node.inputs):
                if not isinstance(tensor, Constant) or not _is_vector(model, tensor):
                    continue
                readers[tensor] = readers.get(tensor, 0) + 1
                if readers[tensor] > 1:
                    node.inputs[slot] = _copy(tensor, model.fresh(tensor.name, "own"))
                    change.edits += 1
        return change


@dataclass(frozen=True, slots=True)
class Reshare:
    """Store equal vectors once: what `Unshare` has copied, and nothing has made different since."""

    name: str = "reshare"

    def run(self, model: Model) -> Change:
        """Share; edits counts the inputs that read another vector now."""
        change = Change()
        held: dict[tuple[object, ...], Constant] = {}
        for node in model.graph.nodes:
            for slot, tensor in enumerate(node.inputs):
                if isinstance(tensor, Constant) and _is_vector(model, tensor):
                    values = np.asarray(weights.read(tensor))
                    key = (str(values.dtype), values.shape, getattr(tensor, "stored_as", 0), values.tobytes())
                    first = held.setdefault(key, tensor)
                    if first is not tensor:
                        node.inputs[slot] = first
                        change.edits += 1
        return change


def _is_vector(model: Model, tensor: Constant) -> bool:
    if tensor.name in model.graph.overridable or weights.elem_type(tensor) not in _FLOATS:
        return False
    return sum(size != 1 for size in tensor.shape) == 1 and weights.size_bytes(tensor) <= _VECTOR


def _copy(tensor: Constant, name: str) -> Constant:
    made = Constant(name, tensor._values)
    stored_as = getattr(tensor, "stored_as", 0)
    if stored_as:
        made.stored_as = stored_as
    return made
