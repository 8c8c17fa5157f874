"""Evaluate tensors of sizes (Shape, Gather, Mul, Concat ...) for given sizes of the free dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS

Values = NDArray[Any]
_MOST_STEPS = 256  # number of nodes to evaluate
_MOST_VALUES = 64  # elements of a constant: shapes are short


def value_of(
    model: Model, tensor: Tensor, sizes: Mapping[str, int], shapes: Mapping[Tensor, tuple[int, ...]]
) -> Values | None:
    """Evaluate a tensor that depends only on constants and shapes.

    Args:
        model: the model.
        tensor: the tensor to evaluate.
        sizes: name of a free dimension -> its size.
        shapes: tensor -> its shape, which takes precedence over the shape in the model.

    Returns:
        The values; None if they depend on anything else.
    """
    try:
        return _Sizes(model, sizes, shapes).value(tensor)
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return None  # not arithmetic on sizes


class _Sizes:
    """Evaluates tensors recursively and caches the results."""

    def __init__(self, model: Model, sizes: Mapping[str, int], shapes: Mapping[Tensor, tuple[int, ...]]) -> None:
        self._model, self._sizes, self._shapes = model, sizes, shapes
        self._steps = 0
        self._found: dict[Tensor, Values | None] = {}

    def value(self, tensor: Tensor) -> Values | None:
        if tensor not in self._found:
            self._found[tensor] = self._make(tensor)
        return self._found[tensor]

    def _make(self, tensor: Tensor) -> Values | None:
        node = edit.producer(tensor)
        self._steps += 1
        if self._steps > _MOST_STEPS:
            return None
        if node is None:
            constant = hasattr(tensor, "_values") and int(np.prod(tensor.shape, dtype=np.int64)) <= _MOST_VALUES
            return np.asarray(tensor.values) if constant else None
        if node.domain not in STANDARD_DOMAINS or node.outputs[0] is not tensor:
            return None
        if node.op == "Shape":
            return self._shape(node)
        compute = _ARITHMETIC.get(node.op)
        if compute is None:
            return None
        given = [self.value(t) if t.name else None for t in node.inputs]
        if any(found is None for found, t in zip(given, node.inputs, strict=True) if t.name):
            return None
        return compute(node, *given)

    def _shape(self, node: Node) -> Values | None:
        shape = self._shapes.get(node.inputs[0], self._model.shape(node.inputs[0]))
        if shape is None:
            return None
        found = [d if isinstance(d, int) else self._sizes.get(str(d)) for d in shape]
        found = found[int(node.attrs.get("start", 0)) : node.attrs.get("end")]
        return None if None in found else np.array(found, np.int64)


def _axes(node: Node, given: Values | None) -> list[int]:
    """Axes of Squeeze and Unsqueeze: an attribute up to opset 12, an input since then."""
    axes: list[int] = node.attrs["axes"] if given is None else given.reshape(-1).tolist()
    return axes


def _unsqueeze(node: Node, x: Values, axes: Values | None = None) -> Values:
    return np.expand_dims(x, tuple(_axes(node, axes)))


def _squeeze(node: Node, x: Values, axes: Values | None = None) -> Values:
    given = axes is not None or "axes" in node.attrs
    return np.squeeze(x, tuple(_axes(node, axes)) if given else None)


def _slice(
    node: Node, x: Values, starts: Values | None = None, ends: Values | None = None, *more: Values | None
) -> Values:
    return sliced(node, x, [starts, ends, *more])


def sliced(node: Node, x: Values, given: list[Values | None]) -> Values:
    """Compute Slice.

    Args:
        node: the Slice, whose attributes are used up to opset 9.
        x: the values to slice.
        given: starts, ends, axes and steps as far as they are inputs (Slice-10).

    Raises:
        ValueError: a step is negative.
    """
    starts, ends, axes, steps = (
        node.attrs.get(name) if value is None else value.reshape(-1).tolist()
        for name, value in zip(("starts", "ends", "axes", "steps"), [*given, *[None] * 4], strict=False)
    )
    assert starts is not None
    assert ends is not None
    cut = [slice(None)] * x.ndim
    axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise ValueError("backwards")
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _div(node: Node, a: Values, b: Values) -> Values:
    return np.trunc(a / b).astype(a.dtype) if a.dtype.kind == "i" else a / b  # ONNX Div rounds toward zero


def _reshape(node: Node, x: Values, shape: Values) -> Values:
    return x.reshape(shape.tolist())


_ARITHMETIC: dict[str, Callable[..., Values]] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": _div,
    "Floor": lambda node, x: np.floor(x),
    "Ceil": lambda node, x: np.ceil(x),
    "Identity": lambda node, x: x,
    "Cast": lambda node, x: x.astype({1: np.float32, 6: np.int32, 7: np.int64, 11: np.float64}.get(node.attrs["to"])),
    "Concat": lambda node, *parts: np.concatenate(parts, int(node.attrs["axis"])),
    "Gather": lambda node, x, at: np.take(x, at, int(node.attrs.get("axis", 0))),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
