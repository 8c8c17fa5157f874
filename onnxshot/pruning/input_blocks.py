"""Blocks of input columns, for layers whose second moments are too large to hold at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.maths.pruning_masks import Mask, Pattern, histogram, lowest_in_each, lowest_scores

MOST = 8192
"""Most inputs of a layer that is fitted at once, at any budget: the work grows with their cube."""
_PARTS = 16  # blocks that the inputs fitted at once are divided into, where a layer has more
_BYTES = 64  # per pair of inputs: second moments in float32 and float64, of parts of the samples and inverted


def whole_inputs() -> int:
    """Most inputs of a layer that is fitted at once: as many as have second moments that fit the memory budget.

    Those of 25,088 inputs would take 5 GB in float64.
    """
    return min(MOST, math.isqrt(memory.budget() // _BYTES))


def in_place(table: NDArray[np.float32], order: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    """Return a table [G, O, K] with its columns permuted back from this order."""
    if isinstance(order, slice):
        return table
    found = np.empty_like(table)
    found[:, :, order] = table
    return found


def blocks_of(inputs: int, pattern: Pattern) -> list[slice]:
    """Column ranges that are fitted at once: one up to `whole_inputs()`, else blocks that no pattern crosses."""
    whole = whole_inputs()
    if inputs <= whole:
        return [slice(0, inputs)]
    size = max(whole // _PARTS // pattern.width, 1) * pattern.width
    return [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]


def counts_of(
    blocks: Sequence[slice],
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    pattern: Pattern,
    count: int,
    fixed: Mask,
) -> list[int]:
    """Number of zeros in each block: the weights of least w^2 E[x^2] in the whole layer (Wanda, Sun et al. 2024).

    For unstructured pruning, scores are compared to 8 bits of mantissa, so that a histogram replaces the scores of all
    weights. Ties go to earlier blocks.

    Args:
        blocks: Column ranges.
        weight: [G, O, K].
        x: Inputs of the layer [G, N, K].
        pattern: Pattern of the zeros.
        count: Number of zeros in the layer.
        fixed: [G, O, K], weights that are zero in any case.
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
    return lowest_in_each([histogram(scores(block)) for block in blocks], count)
