"""Detect the pattern of a weight's zeros, which tells the kernels for sparse weights that could use it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DENSE, UNSTRUCTURED, CHANNELS = "dense", "unstructured", "channels"
_FEW = 0.01  # share of zeros below which a weight counts as dense: dense weights have a few zeros by chance


def sparsity(weight: NDArray[Any]) -> float:
    """Return the share of zeros in a weight, 0 to 1; 0 for an empty weight.

    Example:
        >>> float(sparsity(np.array([0.0, 1.0, 0.0, 2.0])))
        0.5
    """
    return 1.0 - np.count_nonzero(weight) / weight.size if weight.size else 0.0


def pattern(weight: NDArray[Any]) -> str:
    """Return the strictest pattern that the zeros of a weight have.

    Args:
        weight: [O, I, *kernel], of any dtype.

    Returns:
        The first of these that holds:

        - "dense": less than 1 % of the values are zero.
        - "channels": all zeros lie in outputs or inputs that are zero as a whole.
        - "1:4", "2:4": of every 4 consecutive inputs at most 1 (or 2) are not zero, for each output and kernel
          position; the number of inputs is a multiple of 4.
        - "block:4x1": every 4 consecutive outputs are zero together; the number of outputs is a multiple of 4.
        - "unstructured".

    Example:
        >>> pattern(np.array([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]]))
        '2:4'
    """
    alive = weight != 0
    share = 1.0 - alive.mean() if alive.size else 0.0
    if share < _FEW:
        return DENSE
    inner = tuple(range(1, weight.ndim))
    outputs, inputs = alive.any(axis=inner), alive.any(axis=(0, *inner[1:]))
    if alive[outputs][:, inputs].all():
        return CHANNELS
    by_input = np.moveaxis(alive, 1, -1)
    for n, m in ((1, 4), (2, 4)):
        if by_input.shape[-1] % m == 0 and (by_input.reshape(-1, m).sum(axis=1) <= n).all():
            return f"{n}:{m}"
    if weight.shape[0] % 4 == 0:
        blocks = alive.reshape(weight.shape[0] // 4, 4, -1)
        if (blocks.all(axis=1) | ~blocks.any(axis=1)).all():
            return "block:4x1"
    return UNSTRUCTURED
