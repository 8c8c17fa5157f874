"""Which weights stay: patterns of zeros, and masks of an exact sparsity by scores."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LARGE = 1 << 24  # scores of which indices would take more memory than the weights

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Pattern:
    """The shape that zeros come in.

    keep, of: `keep` weights that are not zero in every `of` neighbouring inputs of an output; 0 where any may be zero.
    rows, columns: zeros come in blocks of so many outputs and inputs.
    """

    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of 'unstructured', 'N:M' (N of M stay) or 'block:RxC'. Raises ValueError on anything else."""
        if text == "unstructured":
            return cls()
        few = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
        if few and 0 < int(few[1]) < int(few[2]):
            return cls(keep=int(few[1]), of=int(few[2]))
        block = re.fullmatch(r"block:(\d{1,3})x(\d{1,3})", text)
        if block and min(int(block[1]), int(block[2])) > 0:
            return cls(rows=int(block[1]), columns=int(block[2]))
        raise ValueError(f"{text!r} is no pattern")

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that the pattern alone fixes; None where it fixes none."""
        return 1 - self.keep / self.of if self.of else None

    @property
    def width(self) -> int:
        """Columns that are decided on together."""
        return self.of or self.columns

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return "unstructured" if self.rows * self.columns == 1 else f"block:{self.rows}x{self.columns}"


def lowest_scores(scores: Floats, pattern: Pattern, count: int) -> Mask:
    """True where weights go: about `count` of those with the lowest scores, as the pattern allows. scores [O, K].

    Unstructured: `count` exactly. Blocks: as many whole ones as come closest to it; those at the edges may be smaller.
    N:M: M - N of every M neighbouring columns, whatever the count; where K is no multiple of M, the last columns stay.
    Scores of minus infinity go first.
    """
    if pattern.of:
        return _lowest_of_groups(scores, pattern)
    if pattern.rows * pattern.columns > 1:
        return _lowest_blocks(scores, pattern, count)
    count = min(max(count, 0), scores.size)
    if scores.size > _LARGE and count:
        return lowest_scores_of_many(scores, count)
    gone = np.zeros(scores.size, bool)
    if count:
        gone[np.argpartition(scores, count - 1, axis=None)[:count]] = True
    return gone.reshape(scores.shape)


def lowest_scores_of_many(scores: Floats, count: int) -> Mask:
    """True for exactly `count` of the lowest scores; of equal ones the first. No index is held of any of them."""
    limit = np.partition(scores, count - 1, axis=None)[count - 1]
    gone: Mask = scores < limit
    equal = np.flatnonzero(scores == limit)[: count - int(gone.sum())]
    gone.reshape(-1)[equal] = True
    return gone


def _lowest_of_groups(scores: Floats, pattern: Pattern) -> Mask:
    outputs, columns = scores.shape
    whole = columns - columns % pattern.of
    groups = scores[:, :whole].reshape(outputs, -1, pattern.of)
    order = np.argsort(groups, axis=2, kind="stable")[:, :, : pattern.of - pattern.keep]
    gone = np.zeros(groups.shape, bool)
    np.put_along_axis(gone, order, True, 2)
    return np.pad(gone.reshape(outputs, whole), ((0, 0), (0, columns - whole)))


def _lowest_blocks(scores: Floats, pattern: Pattern, count: int) -> Mask:
    outputs, columns = scores.shape
    down, across = math.ceil(outputs / pattern.rows), math.ceil(columns / pattern.columns)
    edges = ((0, down * pattern.rows - outputs), (0, across * pattern.columns - columns))
    split = (down, pattern.rows, across, pattern.columns)
    sizes = np.pad(np.ones(scores.shape, np.int64), edges).reshape(split).sum((1, 3))
    means = np.pad(scores.astype(np.float64), edges).reshape(split).sum((1, 3)) / sizes
    order = np.argsort(means, axis=None, kind="stable")
    reached = np.concatenate([[0], np.cumsum(sizes.reshape(-1)[order])])
    taken = int(np.abs(reached - count).argmin())
    gone = np.zeros(means.size, bool)
    gone[order[:taken]] = True
    whole = np.repeat(np.repeat(gone.reshape(means.shape), pattern.rows, 0), pattern.columns, 1)
    return whole[:outputs, :columns]
