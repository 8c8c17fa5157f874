"""Which pattern the zeros of a weight have: what a kernel for sparse weights could make use of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DENSE, UNSTRUCTURED, CHANNELS = "dense", "unstructured", "channels"
_FEW = 0.01  # share of zeros below which a weight is dense: some are zero by accident


def sparsity(weight: NDArray[Any]) -> float:
    """Share 0..1 of zeros; 0 of a weight without values."""
    return 1.0 - np.count_nonzero(weight) / weight.size if weight.size else 0.0


def pattern(weight: NDArray[Any]) -> str:
    """The strictest of channels, 2:4, 1:4, 4x1 blocks, unstructured and dense that holds. weight [O, I, *kernel].

    channels: all zeros are in outputs or inputs without any other value. N:M: of M inputs that follow each other, at
    most N are not zero, for every output and place in the kernel. block:4x1: four outputs that follow each other are
    zero together. Where sizes are no multiple of M or 4, the pattern does not hold.
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
