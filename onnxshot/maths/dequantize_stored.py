"""Dequantize integers that a model stores, with scales per tensor, per channel or per block, in the scales' type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def dequantize_channels(q: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int) -> NDArray[Any]:
    """Dequantize with scales per tensor or per channel: (q - zero) * scale.

    Args:
        q: integers (or float8 values), of any shape.
        scale: () or [1] per tensor, [C] along `axis` per channel.
        zero: zero points of the same shape as the scale; None for 0.
        axis: the axis of the channels.

    Returns:
        The values in the dtype of the scale, of the shape of q; computed in float32. Source: DequantizeLinear-13.

    Example:
        >>> dequantize_channels(np.array([[1, 2], [3, 4]], np.int8), np.array([1.0, 0.5], np.float32), None, 0).tolist()
        [[1.0, 2.0], [1.5, 2.0]]
    """
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
    """Whether scales of shape `scale` are the blockwise scales of a tensor of shape `shape`.

    Args:
        shape: shape of the tensor, with n values along the axis.
        scale: shape of the scales; fits with ceil(n / block) along the axis and the tensor's size, or 1, along others.
        axis: the axis that is divided into blocks; may be negative.
        block: number of values per block.
    """
    if len(shape) != len(scale) or block < 1 or not -len(shape) <= axis < len(shape):
        return False
    axis %= len(shape)
    others = all(a in (b, 1) for i, (a, b) in enumerate(zip(scale, shape, strict=True)) if i != axis)
    return others and scale[axis] == -(-shape[axis] // block)


def dequantize_blocks(integers: Array, scale: Array, zero: Array | float, axis: int, block: int) -> Array:
    """Dequantize with one scale per block of consecutive values along an axis: (q - zero) * scale.

    Args:
        integers: quantized values [.., n, ..], n along the axis.
        scale: [.., ceil(n / block), ..]; size 1 along other axes broadcasts. The last block may be shorter.
        zero: zero points of the shape of the scale, or one number for all.
        axis: the axis that is divided into blocks.
        block: number of values per block.

    Returns:
        The values in the dtype of the scale, of the shape of `integers`. Source: DequantizeLinear-21, and
        com.microsoft MatMulNBits.

    Example:
        >>> dequantize_blocks(np.array([1, 2, 3]), np.array([1.0, 10.0], np.float32), 0.0, 0, 2).tolist()
        [1.0, 2.0, 30.0]
    """
    size = integers.shape[axis]

    def spread(values: Array) -> Array:
        repeated = np.repeat(values, block, axis=axis)
        return np.take(repeated, np.arange(size), axis=axis)

    shift = spread(zero.astype(np.float32)) if isinstance(zero, np.ndarray) else np.float32(zero)
    real = (integers.astype(np.float32) - shift) * spread(scale.astype(np.float32))
    return np.asarray(real.astype(scale.dtype))
