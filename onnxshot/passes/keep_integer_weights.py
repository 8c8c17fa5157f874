"""Store float weights in the integers that the input model had for them: w -> Mul(Sub(Cast(integers), zero), scale).

`--complete` keeps the quantization that a model brings. For weights of nodes that stay float, runtimes compute this
chain once, when they load the file. 4-bit integers keep their DequantizeLinear-21; below opset 21 they are stored as
bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Model, Tensor, edit, weights
from onnxshot.maths.dequantize_stored import dequantize_channels
from onnxshot.passes.base import Change
from onnxshot.planning.trained_scales import Given, Trained

_MIN_ELEMENTS = 1024  # the nodes and scales take some hundred bytes themselves
_CAST = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)
_NIBBLES = (TensorProto.INT4, TensorProto.UINT4)
_ANY_TYPE = 21  # first opset whose DequantizeLinear takes 4-bit integers


@dataclass(frozen=True, slots=True)
class KeepIntegerWeights:
    """Compute float weights from the input's integers, if the values are exactly equal.

    A weight may be a reshape or, for a matrix, the transpose of the integers.

    Edits count the float constants replaced. Nothing is reported as skipped.

    Attributes:
        trained: The integers, scales and zero points that the input model brought.
        names: Filled by `run`: names of the input's weights that are stored in its integers.
    """

    trained: Trained
    names: list[str] = field(default_factory=list)
    name: str = "keep_stored"
    _made: dict[str, Tensor | None] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Replace the weights."""
        change = Change()
        for constant in list(model.constants()) if self.trained.stored else ():
            small = math.prod(constant.shape) < _MIN_ELEMENTS or weights.elem_type(constant) != TensorProto.FLOAT
            if small or edit.is_output(model, constant) or getattr(constant, "overridable", False):
                continue
            values = np.asarray(weights.read(constant))
            name = self.trained.stored_as(values)
            real = self._same(model, name, values) if name is not None else None
            if name is None or real is None:
                continue
            edit.replace_uses(model, constant, real)
            self.names.append(name)
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _same(self, model: Model, name: str, values: NDArray[np.float32]) -> Tensor | None:
        """A tensor with these values, computed from the stored integers; None if the values differ."""
        given = self.trained.stored[name]
        zero = None if given.zero is None else weights.read(given.zero)
        real = dequantize_channels(weights.read(given.values), weights.read(given.scale), zero, given.axis)
        if real.size != values.size:
            return None
        turned = real.ndim == 2 and real.shape == values.shape[::-1] and np.array_equal(real.T, values)
        if not turned and not np.array_equal(real.reshape(values.shape), values):
            return None
        if name not in self._made:
            self._made[name] = _restored(model, name, given)
        made = self._made[name]
        if made is None or (real.shape == values.shape and np.array_equal(real, values)):
            return made
        if turned:
            node = edit.add_node(model, "Transpose", [made], base=name, suffix="turned", attrs={"perm": [1, 0]})
        else:
            shape = edit.add_constant(model, name, "shape", np.array(values.shape, np.int64))
            node = edit.add_node(model, "Reshape", [made, shape], base=name, suffix="shaped")
        return node.outputs[0]


def _restored(model: Model, name: str, given: Given) -> Tensor | None:
    """Output of the nodes that dequantize stored integers; None if the model's opset has no operators for them."""
    stored, kind = given.values, weights.elem_type(given.values)
    if kind not in _CAST and model.opset >= _ANY_TYPE:
        inputs = [stored, given.scale, *([] if given.zero is None else [given.zero])]
        attrs = {"axis": given.axis}
        return edit.add_node(model, "DequantizeLinear", inputs, base=name, suffix="as_float", attrs=attrs).outputs[0]
    if kind in _NIBBLES:
        stored = edit.add_constant(model, name, "bytes", weights.read(stored).astype(np.int8))
    elif kind not in _CAST:
        return None
    shape = [1] * len(stored.shape)
    scale = np.asarray(weights.read(given.scale), np.float32)
    if scale.size > 1:
        shape[given.axis] = scale.size
    attrs = {"to": int(TensorProto.FLOAT)}
    real = edit.add_node(model, "Cast", [stored], base=name, suffix="as_float", attrs=attrs).outputs[0]
    zero = None if given.zero is None else np.asarray(weights.read(given.zero), np.float32)
    if zero is not None and zero.any():
        shift = edit.add_constant(model, name, "shift", zero.reshape(shape if zero.size > 1 else ()))
        real = edit.add_node(model, "Sub", [real, shift], base=name, suffix="centred").outputs[0]
    step = edit.add_constant(model, name, "scale", scale.reshape(shape if scale.size > 1 else ()))
    return edit.add_node(model, "Mul", [real, step], base=name, suffix="restored").outputs[0]


def kept_integer_notes(names: list[str]) -> list[str]:
    """Notes for the report."""
    count = len(set(names))
    return [f"{count} weights of float nodes are stored in the integers of the input model"] if count else []
