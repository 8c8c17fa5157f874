"""Weights that are stored in a few bits, several to a byte, with a scale for each block: given their values back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers of 2, 4 or 8 bits out of bytes, the lowest bits first. [..., n] -> [..., n * 8 / bits]."""
    if bits == 8:
        return stored
    parts = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*stored.shape[:-1], -1)


def fits_blocks(shape: Sequence[int], scale: Sequence[int], axis: int, block: int) -> bool:
    """Whether scales of this shape are of blocks of values of the other one, along the axis."""
    if len(shape) != len(scale) or block < 1 or not -len(shape) <= axis < len(shape):
        return False
    axis %= len(shape)
    others = all(a in (b, 1) for i, (a, b) in enumerate(zip(scale, shape, strict=True)) if i != axis)
    return others and scale[axis] == -(-shape[axis] // block)


def from_blocks(integers: Array, scale: Array, zero: Array | float, axis: int, block: int) -> Array:
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
