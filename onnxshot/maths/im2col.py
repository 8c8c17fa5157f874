"""im2col at selected positions: the input values that a convolution multiplies its weight with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def patches(
    x: NDArray[Any],
    positions: NDArray[np.int64],
    sizes: Sequence[int],
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    fill: NDArray[Any] | float,
) -> NDArray[Any]:
    """Return the input patches that a Conv reads for some positions of its output.

    Args:
        x: one sample [C, *spatial].
        positions: flat indices into the spatial axes of the output, int64 [P].
        sizes: spatial sizes of the output.
        kernel: attribute `kernel_shape` of the Conv, one number per spatial axis; as are the next two.
        strides: attribute `strides`.
        dilations: attribute `dilations`.
        begin: padding in front of each spatial axis.
        fill: value of the padding.

    Returns:
        [P, C, prod(kernel)], of the dtype of x. Source: ONNX Conv-11.

    Example:
        >>> x = np.array([[1.0, 2.0, 3.0]])
        >>> how = dict(kernel=[3], strides=[1], dilations=[1], begin=[1], fill=0.0)
        >>> patches(x, np.array([0, 2]), [3], **how).tolist()
        [[[0.0, 1.0, 2.0]], [[2.0, 3.0, 0.0]]]
    """
    if tuple(sizes) == x.shape[1:] and not any(begin) and all(a * b == 1 for a, b in zip(kernel, strides, strict=True)):
        pointwise: NDArray[Any] = x.reshape(x.shape[0], -1).take(positions, axis=1).T[:, :, None]
        return pointwise
    at = np.unravel_index(positions, tuple(sizes))
    inside = np.ones((len(positions), *kernel), bool)
    index = np.zeros(inside.shape, np.int64)
    for axis, places in enumerate(at):
        taps = places[:, None] * strides[axis] - begin[axis] + np.arange(kernel[axis]) * dilations[axis]
        shape = [len(positions)] + [1] * len(kernel)
        shape[axis + 1] = kernel[axis]
        inside &= ((taps >= 0) & (taps < x.shape[axis + 1])).reshape(shape)
        index = index * x.shape[axis + 1] + np.clip(taps, 0, x.shape[axis + 1] - 1).reshape(shape)
    found = np.take(x.reshape(x.shape[0], -1), index, axis=1)  # [C, P, *kernel]
    if not inside.all():
        found = np.where(inside, found, np.asarray(fill, x.dtype))
    taken: NDArray[Any] = found.reshape(x.shape[0], len(positions), -1).transpose(1, 0, 2)
    return taken
