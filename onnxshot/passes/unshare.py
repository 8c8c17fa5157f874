"""Copy shared bias and scale vectors, so that each node has its own, and merge equal vectors again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Model, weights
from onnxshot.passes.base import Change

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_VECTOR = 1 << 16  # largest vector to copy, in bytes: enough for biases and norms of wide layers


@dataclass(frozen=True, slots=True)
class Unshare:
    """Copy vectors that several nodes read: one vector, n readers -> n vectors.

    Exporters store equal biases once, for example zeros. With copies, structured pruning can cut such layers
    independently. `Reshare` merges the vectors that are still equal.

    Edits count the copies. Nothing is skipped.
    """

    name: str = "unshare"

    def run(self, model: Model) -> Change:
        """Copy the vectors of the top-level graph."""
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
    """Store equal vectors once: n equal vectors -> one vector, n readers. Undoes `Unshare`.

    Edits count the inputs that read another vector now. Nothing is skipped.
    """

    name: str = "reshare"

    def run(self, model: Model) -> Change:
        """Merge the vectors of the top-level graph."""
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
