"""What a convolution multiplies its weight with, at some positions of its output: im2col without the rest."""

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
    """Patches of one sample x [C, *in] at flat positions of an output of these sizes: [P, C, prod(kernel)].

    ONNX Conv-11. begin: padding in front of every axis; fill: what is padded with.
    """
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
