"""Put weights that came as float16 behind a Cast, and stayed float32, back into float16: a file must not grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Model, edit, weights
from onnxshot.passes.base import Change

_MIN_BYTES = 1024  # a Cast node costs about a hundred bytes itself


@dataclass(frozen=True, slots=True)
class StoreHalf:
    """Store such weights as float16 and Cast; only where float16 holds every value exactly."""

    name: str = "store_half"

    def run(self, model: Model) -> Change:
        """Insert the casts; edits counts the weights."""
        change = Change()
        for constant in model.constants():
            if getattr(constant, "stored_as", None) != TensorProto.FLOAT16 or edit.is_output(model, constant):
                continue
            if weights.elem_type(constant) != TensorProto.FLOAT or weights.size_bytes(constant) < _MIN_BYTES:
                continue
            values = np.asarray(weights.read(constant))
            with np.errstate(over="ignore"):
                if not np.array_equal(values.astype(np.float16).astype(np.float32), values):
                    continue
            _store(model, constant)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _store(model: Model, constant: Constant) -> None:
    def half() -> NDArray[Any]:
        return np.asarray(weights.read(constant)).astype(np.float16)

    users = edit.consumers(constant)
    stored = edit.add_constant(
        model, constant.name, "half", weights.ComputedValues(tuple(constant.shape), np.dtype(np.float16), half)
    )
    cast = edit.add_node(
        model, "Cast", [stored], base=constant.name, suffix="to_float", attrs={"to": TensorProto.FLOAT}
    )
    for user in users:
        for i, tensor in enumerate(user.inputs):
            if tensor is constant:
                user.inputs[i] = cast.outputs[0]
