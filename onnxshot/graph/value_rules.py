"""Values of small tensors that shapes are computed with: one rule per operator that exporters use for shape arithmetic.

Values may be symbolic (`symbolic_dims`). A rule returns None where the values are unknown. Source: ONNX Operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxshot.graph.symbolic_dims import Expr, entries, equal, is_known, is_size, pack, unknown

Array = NDArray[Any]
Attrs = dict[str, Any]
Result = Array | Sequence[Array] | None

MOST = 1 << 12
"""Largest number of elements of a tensor whose values are computed."""
_HOLDS_SIZES = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE)


def values_of(op: str, attrs: Attrs, given: Sequence[Array | None]) -> list[Array] | None:
    """Compute the outputs of a node.

    Args:
        op: operator of the default domain.
        attrs: its attributes; tensors as arrays.
        given: values of its inputs, ints, floats or symbolic; None for absent inputs.

    Returns:
        The values of its outputs, or None where they are unknown or the node is invalid.

    Example:
        >>> [array.tolist() for array in values_of("Add", {}, [np.array([1, 2]), np.array([10])]) or ()]
        [[11, 12]]
    """
    rule = VALUES.get(op)
    if rule is None:
        return None
    try:
        with np.errstate(all="ignore"):
            found = rule(attrs, given)
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, MemoryError):
        return None
    if found is None:
        return None
    outputs = [found] if isinstance(found, np.ndarray | np.generic) else found
    return [_settled(np.asarray(array)) for array in outputs]


def _settled(array: Array) -> Array:
    return pack(array) if array.dtype == object else array


# ---------------------------------------------------------------------- arithmetic


def _two(compute: Callable[[Any, Any], Any]) -> Callable[[Attrs, Sequence[Any]], Result]:
    def rule(attrs: Attrs, given: Sequence[Any]) -> Result:
        return np.asarray(compute(given[0], given[1]))

    return rule


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return np.asarray(a / b)
    if is_known(a) and is_known(b):
        return np.asarray(np.sign(a) * np.sign(b) * (abs(a) // abs(b)))  # ONNX rounds towards 0
    return _each(lambda x, y: x // y, a, b)


def _mod(a: Array, b: Array) -> Array:
    def one(x: Any, y: Any) -> Any:
        return x % y if not isinstance(x, Expr) and not isinstance(y, Expr) else unknown()

    return np.asarray(np.mod(a, b)) if is_known(a) and is_known(b) else _each(one, a, b)


def _equal(a: Array, b: Array) -> Array | None:
    if is_known(a) and is_known(b):
        return np.asarray(a == b)
    found = [equal(x, y) for x, y in zip(*(np.broadcast_arrays(a, b)[i].reshape(-1) for i in (0, 1)), strict=True)]
    shape = np.broadcast_shapes(a.shape, b.shape)
    return None if any(f is None for f in found) else np.array(found, bool).reshape(shape)


def _least(most: bool) -> Callable[[Attrs, Sequence[Any]], Result]:
    def one(x: Any, y: Any) -> Any:
        if is_size(x - y):
            return x if most else y
        if is_size(y - x):
            return y if most else x
        return unknown()

    def rule(attrs: Attrs, given: Sequence[Any]) -> Result:
        found = given[0]
        for other in given[1:]:
            known = is_known(found) and is_known(other)
            found = (np.maximum if most else np.minimum)(found, other) if known else _each(one, found, other)
        return np.asarray(found)

    return rule


def _known_two(compute: Callable[[Any, Any], Any]) -> Callable[[Attrs, Sequence[Any]], Result]:
    def rule(attrs: Attrs, given: Sequence[Any]) -> Result:
        return np.asarray(compute(given[0], given[1])) if is_known(given[0]) and is_known(given[1]) else None

    return rule


def _known_one(compute: Callable[[Any], Any]) -> Callable[[Attrs, Sequence[Any]], Result]:
    return lambda attrs, given: np.asarray(compute(given[0])) if is_known(given[0]) else None


def _each(compute: Callable[[Any, Any], Any], a: Array, b: Array) -> Array:
    """The results for all pairs of elements, broadcast, as an object array."""
    one, other = np.broadcast_arrays(a.astype(object), b.astype(object))
    found = [compute(x, y) for x, y in zip(entries(one), entries(other), strict=True)]
    made = np.empty(len(found), object)
    made[:] = found
    return made.reshape(one.shape)


def _rounded(compute: Callable[[Array], Array]) -> Callable[[Attrs, Sequence[Any]], Result]:
    def rule(attrs: Attrs, given: Sequence[Any]) -> Result:
        x = given[0]
        if is_known(x):
            return np.asarray(compute(x))
        whole = [v if isinstance(v, Expr) and is_size(v) else unknown() for v in entries(x)]
        return pack(whole).reshape(x.shape)

    return rule


def _cast(attrs: Attrs, given: Sequence[Any]) -> Result:
    kind, x = int(attrs["to"]), given[0]
    if is_known(x):
        if kind == TensorProto.BFLOAT16:
            return None
        return np.asarray(x.astype(helper.tensor_dtype_to_np_dtype(kind)))
    return np.asarray(x) if kind in _HOLDS_SIZES else None


def _where(attrs: Attrs, given: Sequence[Any]) -> Result:
    condition, a, b = given
    if not is_known(condition):
        return None
    return np.asarray(np.where(condition, a, b))


def _reduced(compute: Callable[..., Any]) -> Callable[[Attrs, Sequence[Any]], Result]:
    def rule(attrs: Attrs, given: Sequence[Any]) -> Result:
        axes = attrs.get("axes", given[1].tolist() if len(given) > 1 and given[1] is not None else None)
        if not axes and attrs.get("noop_with_empty_axes", 0):
            return np.asarray(given[0])
        keep = bool(attrs.get("keepdims", 1))
        return np.asarray(compute(given[0], axis=tuple(axes) if axes else None, keepdims=keep), dtype=given[0].dtype)

    return rule


def _range(attrs: Attrs, given: Sequence[Any]) -> Result:
    if not all(map(is_known, given)):
        return None
    start, limit, step = (v.reshape(-1)[0].item() for v in given)
    if (limit - start) / step > MOST:
        return None
    return np.asarray(np.arange(start, limit, step), given[0].dtype)


# ---------------------------------------------------------------------- moving


def _axes(attrs: Attrs, given: Sequence[Any], slot: int = 1) -> list[int] | None:
    if "axes" in attrs:
        return list(attrs["axes"])
    if slot < len(given) and given[slot] is not None:
        return [int(v) for v in given[slot].reshape(-1).tolist()]
    return None


def _squeeze(attrs: Attrs, given: Sequence[Any]) -> Result:
    axes = _axes(attrs, given)
    return np.asarray(np.squeeze(given[0], None if axes is None else tuple(axes)))


def _unsqueeze(attrs: Attrs, given: Sequence[Any]) -> Result:
    axes = _axes(attrs, given)
    return None if axes is None else np.asarray(np.expand_dims(given[0], tuple(axes)))


def _gather(attrs: Attrs, given: Sequence[Any]) -> Result:
    return np.asarray(np.take(given[0], given[1], int(attrs.get("axis", 0)))) if is_known(given[1]) else None


def _slice(attrs: Attrs, given: Sequence[Any]) -> Result:
    x = given[0]
    if "starts" in attrs:
        starts, ends, steps = attrs["starts"], attrs["ends"], None
        axes = attrs.get("axes")
    else:
        if not all(v is None or is_known(v) for v in given[1:]):
            return None
        starts, ends = given[1].tolist(), given[2].tolist()
        axes = _axes({}, given, 3)
        steps = given[4].tolist() if len(given) > 4 and given[4] is not None else None
    cut = [slice(None)] * x.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[i] if steps is not None else 1
        end = None if step < 0 and ends[i] < -x.shape[axis] else ends[i]
        cut[axis] = slice(starts[i], end, step)
    return np.asarray(x[tuple(cut)])


def _concat(attrs: Attrs, given: Sequence[Any]) -> Result:
    return np.concatenate(given, int(attrs["axis"]))


def _split(attrs: Attrs, given: Sequence[Any]) -> Result:
    x, axis = given[0], int(attrs.get("axis", 0))
    sizes = attrs.get("split", given[1].tolist() if len(given) > 1 and given[1] is not None else None)
    if sizes is None:
        return None
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _reshape(attrs: Attrs, given: Sequence[Any]) -> Result:
    if not is_known(given[1]):
        return None
    x, shape = given[0], given[1].tolist()
    if not attrs.get("allowzero", 0):
        shape = [x.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return np.asarray(x.reshape(shape))


def _expand(attrs: Attrs, given: Sequence[Any]) -> Result:
    if not is_known(given[1]):
        return None
    shape = np.broadcast_shapes(given[0].shape, tuple(given[1].tolist()))
    return np.broadcast_to(given[0], shape).copy() if math.prod(shape) <= MOST else None


def _tile(attrs: Attrs, given: Sequence[Any]) -> Result:
    if not is_known(given[1]) or given[0].size * math.prod(given[1].tolist()) > MOST:
        return None
    return np.tile(given[0], given[1].tolist())


def _filled(attrs: Attrs, given: Sequence[Any]) -> Result:
    if not is_known(given[0]) or math.prod(given[0].tolist()) > MOST:
        return None
    value = attrs.get("value")
    one = np.zeros(1, np.float32) if value is None else value
    return np.full(given[0].tolist(), np.asarray(one).reshape(-1)[0], np.asarray(one).dtype)


def _transpose(attrs: Attrs, given: Sequence[Any]) -> Result:
    return np.transpose(given[0], attrs.get("perm"))


def _nonzero(attrs: Attrs, given: Sequence[Any]) -> Result:
    return np.array(np.nonzero(given[0]), np.int64) if is_known(given[0]) else None


def _same(attrs: Attrs, given: Sequence[Any]) -> Result:
    return np.asarray(given[0])


Rule = Callable[[Attrs, Sequence[Any]], Result]
VALUES: dict[str, Rule] = {
    "Abs": _known_one(np.abs),
    "Add": _two(lambda a, b: a + b),
    "And": _known_two(np.logical_and),
    "Cast": _cast,
    "Ceil": _rounded(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _two(_div),
    "Equal": lambda attrs, given: _equal(given[0], given[1]),
    "Expand": _expand,
    "Floor": _rounded(np.floor),
    "Gather": _gather,
    "Greater": _known_two(np.greater),
    "GreaterOrEqual": _known_two(np.greater_equal),
    "Identity": _same,
    "Less": _known_two(np.less),
    "LessOrEqual": _known_two(np.less_equal),
    "Max": _least(most=True),
    "Min": _least(most=False),
    "Mod": _two(_mod),
    "Mul": _two(lambda a, b: a * b),
    "Neg": _known_one(np.negative),
    "NonZero": _nonzero,
    "Not": _known_one(np.logical_not),
    "Or": _known_two(np.logical_or),
    "Range": _range,
    "ReduceMax": lambda attrs, given: _reduced(np.max)(attrs, given) if is_known(given[0]) else None,
    "ReduceMin": lambda attrs, given: _reduced(np.min)(attrs, given) if is_known(given[0]) else None,
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _known_one(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _two(lambda a, b: a - b),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
