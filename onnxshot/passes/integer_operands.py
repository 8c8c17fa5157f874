"""Read the operands of integer operators as floats: weights, and the activations that were quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Node, Tensor, edit, weights
from onnxshot.maths.dequantize_stored import dequantize_channels
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.strip_qdq import fits, is_computed_when_read, values_key

Array = NDArray[Any]
Made = tuple[Node, str]
"""(float node that replaces an integer operator, precision that it had, for example "dynamic uint8 x int8")."""

NOT_CONSTANT = "its weight, scale or zero point is computed at run time"


class Unsupported(Exception):
    """Raised by a rule that leaves its operator unchanged. `reason`: the skip reason; empty for no skip."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def constant_values(node: Node, slot: int) -> Array | None:
    """The values of a constant input; None if it is left out. Raises Unsupported if it is computed."""
    tensor = given(node, slot)
    if tensor is not None and not isinstance(tensor, Constant):
        raise Unsupported(NOT_CONSTANT)
    return edit.constant_input(node, slot) if tensor is not None else None


def required(node: Node, slot: int) -> Array:
    """The values of a constant input. Raises Unsupported if it is left out or computed."""
    found = constant_values(node, slot)
    if found is None:
        raise Unsupported(NOT_CONSTANT)
    return found


def float_weight(write: Writer, slot: int, scale: int, zero: int, *, axis: int = -1) -> Constant:
    """The float values of an integer weight.

    Args:
        write: writer at the operator to replace.
        slot: index of the input with the integers.
        scale: index of the input with the scale: one value, or one per index of `axis`.
        zero: index of the input with the zero point.
        axis: channel axis of the weight.

    Raises:
        Unsupported: one of them is computed, or the scale does not fit the weight.
    """
    node = write.node
    q, s, z = required(node, slot), required(node, scale), constant_values(node, zero)
    axis %= max(q.ndim, 1)
    if not fits(q, s.reshape(-1), None if z is None else z.reshape(-1), axis):
        raise Unsupported("its scales do not fit its weight")
    flat = None if z is None else z.reshape(-1)
    scale_values = s.reshape(-1)
    return lazy_constant(
        write, node.inputs[slot], q.shape, s.dtype, lambda q: dequantize_channels(q, scale_values, flat, axis),
        scale_values, flat, axis,
    )  # fmt: skip


def lazy_constant(
    write: Writer,
    constant: Tensor,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    compute: Callable[[Array], Array],
    *parts: Array | float | None,
) -> Constant:
    """A new constant `compute(values of constant)`. If it is large, it is computed each time it is read.

    Args:
        write: writer at the operator to replace.
        constant: the integers.
        shape: shape of the result.
        dtype: dtype of the result.
        compute: integers -> floats.
        parts: all other values that `compute` uses. Operators of one type that read the same integers and parts share
            one constant.
    """
    key = (constant, write.node.op, *shape, *values_key(*parts))
    if key in write.restored:
        return write.restored[key]
    source = Constant(constant.name, constant._values)

    def made() -> Array:
        return compute(weights.read(source))

    large = is_computed_when_read(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    values = weights.ComputedValues(tuple(int(d) for d in shape), dtype, made) if large else made()
    write.restored[key] = edit.add_constant(write.model, constant.name, "float", values)
    return write.restored[key]


def float_input(write: Writer, slot: int, scale: int | None, zero: int) -> tuple[Tensor, Tensor | None, Array | None]:
    """The float tensor that an activation was quantized from.

    Args:
        write: writer at the operator to replace.
        slot: index of the quantized input.
        scale: index of the input with its scale; None if the operator has no such input.
        zero: index of the input with its zero point.

    Returns:
        (float tensor, scale tensor if it is computed at run time, scale if it is a constant). One scale is None.

    Raises:
        Unsupported: another operator quantizes the input, or with another scale.
    """
    node = write.node
    maker, z = edit.producer(node.inputs[slot]), given(node, zero)
    s = None if scale is None else given(node, scale)
    if maker is not None and maker.op == "DynamicQuantizeLinear":
        if z is not maker.outputs[2] or (s is not None and s is not maker.outputs[1]):
            raise Unsupported("its scale is not that of the tensor that it reads")
        return maker.inputs[0], maker.outputs[1], None
    if maker is None or maker.op != "QuantizeLinear":
        raise Unsupported("its input is not made by a QuantizeLinear or DynamicQuantizeLinear")
    known = [edit.constant_input(maker, 1), edit.constant_input(maker, 2)]
    mine = [known[0] if s is None else constant_values(node, scale or 0), constant_values(node, zero)]
    ours, theirs = (tuple(0 if v is None else v.reshape(-1).tolist() for v in pair) for pair in (known, mine))
    same = all(a == b or (a in (0, [0]) and b in (0, [0])) for a, b in zip(ours, theirs, strict=True))
    if known[0] is None or known[0].size != 1 or not same:
        raise Unsupported("its scale is not that of the tensor that it reads")
    pair = [maker.outputs[0], *maker.inputs[1:3]]
    return write.op("DequantizeLinear", *pair), None, known[0].reshape(())
