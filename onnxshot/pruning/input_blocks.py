"""Layers of so many inputs that their second moments would take gigabytes: a block of the inputs at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores

WHOLE, BLOCK = 8192, 512
"""Inputs of a layer whose second moments are held whole; of one with more, in blocks: 25,088^2 would take 5 GB."""


def in_place(table: NDArray[np.float32], order: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    """A table [G, O, K] with its columns back where they were before they were brought into this order."""
    if isinstance(order, slice):
        return table
    found = np.empty_like(table)
    found[:, :, order] = table
    return found


def blocks_of(inputs: int, pattern: Pattern) -> list[slice]:
    """The columns that are fitted at once: all of them up to WHOLE, else blocks of BLOCK that no pattern crosses."""
    size = max(BLOCK - BLOCK % pattern.width, pattern.width)
    if inputs <= WHOLE:
        return [slice(0, inputs)]
    return [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]


def counts_of(
    blocks: Sequence[slice],
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    pattern: Pattern,
    count: int,
    fixed: Mask,
) -> list[int]:
    """How many weights go of each block: those of least w^2 E[x^2] over the whole layer (Wanda, Sun et al. 2024).

    Where any weight may go, scores are told apart to 8 bits of their mantissa, and are never held of all weights at
    once: a few of those that are alike up to there go of earlier blocks.
    """
    power = np.einsum("gnk,gnk->gk", x, x)
    power += 0.01 * power.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny

    def scores(block: slice) -> NDArray[np.float32]:
        found = np.square(weight[:, :, block])
        found *= power[:, None, block]
        found[fixed[:, :, block]] = 0
        return found

    if pattern.of:
        width = weight.shape[2]
        parts = ((s, range(*s.indices(width))) for s in blocks)
        return [int(lowest_scores(scores(s).reshape(-1, len(own)), pattern, count).sum()) for s, own in parts]
    if pattern.rows * pattern.columns > 1:
        whole = scores(slice(None))
        whole[fixed] = -np.inf
        gone = lowest_scores(whole.reshape(-1, weight.shape[2]), pattern, count).reshape(weight.shape)
        return [int(gone[:, :, block].sum()) for block in blocks]
    return _lowest_in([_by_size(scores(block)) for block in blocks], count)


def _by_size(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many scores, none below 0, have each of the 32,768 values of their first 16 bits, whose order is theirs."""
    return np.bincount(np.ascontiguousarray(scores).view(np.uint32).reshape(-1) >> 16, minlength=1 << 15)[: 1 << 15]


def _lowest_in(counted: Sequence[NDArray[np.int64]], count: int) -> list[int]:
    """How many of the `count` lowest are in each block; counted: how many of its scores are in each bin."""
    below = np.cumsum(np.sum(counted, axis=0))
    bin_ = int(np.searchsorted(below, count))  # where the last of them is
    found = [int(one[:bin_].sum()) for one in counted]
    left = count - sum(found)
    for i, one in enumerate(counted):
        more = min(left, int(one[bin_]) if bin_ < len(one) else 0)
        found[i], left = found[i] + more, left - more
    return found
