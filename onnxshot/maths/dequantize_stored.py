"""Dequantize integers that a model stores, with scales per tensor, per channel or per block, in the scales' type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def dequantize_channels(q: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int) -> NDArray[Any]:
    """(q - zero) * scale in the scale's own type. scale [] or [1], or [C] along `axis`; q [...] -> [...]."""
    shape = [1] * q.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[axis] = scale.size
    elif scale.ndim == 1:
        scale = scale.reshape(())
    centred = q.astype(np.float32)
    if zero is not None:
        centred -= zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    real = centred * (scale.reshape(shape) if scale.ndim else scale).astype(np.float32)
    return np.asarray(real.astype(scale.dtype))


def fits_blocks(shape: Sequence[int], scale: Sequence[int], axis: int, block: int) -> bool:
    """Whether scales of this shape are of blocks of values of the other one, along the axis."""
    if len(shape) != len(scale) or block < 1 or not -len(shape) <= axis < len(shape):
        return False
    axis %= len(shape)
    others = all(a in (b, 1) for i, (a, b) in enumerate(zip(scale, shape, strict=True)) if i != axis)
    return others and scale[axis] == -(-shape[axis] // block)


def dequantize_blocks(integers: Array, scale: Array, zero: Array | float, axis: int, block: int) -> Array:
    """(q - zero) * scale, each scale of a block of values along the axis, in the type of the scales.

    integers [.., n, ..]; scale, and zero where it is an array, [.., ceil(n / block), ..], or 1 along others.
    """
    size = integers.shape[axis]

    def spread(values: Array) -> Array:
        repeated = np.repeat(values, block, axis=axis)
        return np.take(repeated, np.arange(size), axis=axis)

    shift = spread(zero.astype(np.float32)) if isinstance(zero, np.ndarray) else np.float32(zero)
    real = (integers.astype(np.float32) - shift) * spread(scale.astype(np.float32))
    return np.asarray(real.astype(scale.dtype))
