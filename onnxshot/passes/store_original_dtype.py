"""Store weights in the narrow type of the input file: float32 weight -> narrow weight, Cast, so that no file grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxshot.graph import Constant, Model, edit, weights
from onnxshot.graph.weight_pieces import by_rows, row_blocks
from onnxshot.passes.base import Change

_MIN_BYTES = 512  # a Cast node costs about a hundred bytes itself
_ROUNDED_DB = 60.0  # least SQNR in dB after rounding a folded weight to float16; its 11 bits leave 66 dB or more


@dataclass(frozen=True, slots=True)
class StoreOriginalDtype:
    """Store float32 weights in the type that they had in the input file, followed by a Cast to float32.

    A weight is stored so only if the type holds each value exactly. A float16 weight that folding has changed may be
    rounded, if each channel keeps 60 dB.

    Edits count the weights. Nothing is reported as skipped.
    """

    name: str = "store_original_dtype"

    def run(self, model: Model) -> Change:
        """Insert the Casts."""
        change = Change()
        for constant in model.constants():
            kind = int(getattr(constant, "stored_as", 0) or 0)
            if not kind or edit.is_output(model, constant):
                continue
            if weights.elem_type(constant) != TensorProto.FLOAT or weights.size_bytes(constant) < _MIN_BYTES:
                continue
            if _fits(kind, constant):
                _store(model, constant, kind)
                change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def narrowed(values: NDArray[Any], kind: int) -> NDArray[Any]:
    """float32 values in another ONNX element type. Values that are too large become infinite, as in ONNX Cast."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.astype(helper.tensor_dtype_to_np_dtype(kind)))


def _fits(kind: int, constant: Constant) -> bool:
    if _as_stored(constant, kind) is not None or all(_holds(kind, block) for _, block in row_blocks(constant)):
        return True
    if kind != TensorProto.FLOAT16:
        return False
    values = np.asarray(weights.read(constant))
    stored = narrowed(values, kind).astype(np.float32)
    if not np.isfinite(stored).all():
        return False
    return all(_close(values, stored, axis) for axis in range(min(values.ndim, 2)))


def _holds(kind: int, values: NDArray[Any]) -> bool:
    """Whether the type holds each value exactly."""
    return np.array_equal(narrowed(values, kind).astype(np.float32), values, equal_nan=True)


def _as_stored(constant: Constant, kind: int) -> Constant | None:
    """The constant of the input file that was widened and not changed since; None where there is none."""
    given = getattr(constant._values, "widened", None)
    return given if given is not None and weights.elem_type(given) == kind else None


def _close(values: NDArray[Any], stored: NDArray[Any], axis: int) -> bool:
    """Whether rounding leaves _ROUNDED_DB of each channel along the axis. Small channels may underflow."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    signal, noise = (np.square(x, dtype=np.float64).sum(axis=others) for x in (values, values - stored))
    return bool((signal >= noise * 10 ** (_ROUNDED_DB / 10)).all())


def _store(model: Model, constant: Constant, kind: int) -> None:
    users, dtype = edit.consumers(constant), np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    given = _as_stored(constant, kind)
    shape, sources = tuple(constant.shape), [constant if given is None else given]
    values = by_rows(shape, dtype, sources, (lambda rows: narrowed(rows, kind)) if given is None else np.asarray)
    stored = edit.add_constant(model, constant.name, "half", values)
    cast = edit.add_node(
        model, "Cast", [stored], base=constant.name, suffix="to_float", attrs={"to": TensorProto.FLOAT}
    )
    for user in users:
        for i, tensor in enumerate(user.inputs):
            if tensor is constant:
                user.inputs[i] = cast.outputs[0]
