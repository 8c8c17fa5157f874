"""Pruning masks: which weights are removed, by their scores, as a pattern of zeros allows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LARGE = 1 << 24  # number of scores above which their sorted indices would take too much memory

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of zeros: unstructured, N:M or blocks.

    Attributes:
        keep, of: N and M of N:M, where of every M consecutive inputs of an output at most N weights are not zero; 0
            otherwise.
        rows, columns: outputs and inputs of a block, which is zero as a whole; 1 and 1 otherwise.
    """

    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse 'unstructured', 'N:M' (N of M consecutive weights are kept) or 'block:RxC'.

        Raises:
            ValueError: the text is none of them.

        Example:
            >>> Pattern.parse("2:4").sparsity
            0.5
        """
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
        """The sparsity that N:M implies, 0 to 1; None for other patterns."""
        return 1 - self.keep / self.of if self.of else None

    @property
    def width(self) -> int:
        """Number of consecutive columns that are pruned or kept together: M, or the columns of a block."""
        return self.of or self.columns

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return "unstructured" if self.rows * self.columns == 1 else f"block:{self.rows}x{self.columns}"


def lowest_scores(scores: Floats, pattern: Pattern, count: int) -> Mask:
    """Select the weights to remove: those with the lowest scores that the pattern allows.

    Args:
        scores: importance of each weight [O, K]; minus infinity is removed first.
        pattern: the pattern of zeros.
        count: how many weights to remove. Unstructured: exactly this many. Blocks: the number of whole blocks that
            comes closest; blocks at the edges may be smaller. N:M: ignored, M - N of every M consecutive columns are
            removed; where K is not a multiple of M, the last K % M columns are kept.

    Returns:
        True where a weight is removed, bool [O, K].

    Example:
        >>> lowest_scores(np.array([[4.0, 1.0, 3.0, 2.0]]), Pattern.parse("2:4"), 0).tolist()
        [[False, True, False, True]]
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
    """Select exactly `count` of the lowest scores, the first of equal ones, in less memory than sorted indices take.

    Args:
        scores: of any shape.
        count: how many to select, at least 1.

    Returns:
        True where a score is selected, bool of the shape of scores.

    Example:
        >>> lowest_scores_of_many(np.array([3.0, 1.0, 2.0]), 2).tolist()
        [False, True, True]
    """
    limit = np.partition(scores, count - 1, axis=None)[count - 1]
    gone: Mask = scores < limit
    equal = np.flatnonzero(scores == limit)[: count - int(gone.sum())]
    gone.reshape(-1)[equal] = True
    return gone


def histogram(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count non-negative scores by their upper 16 bits, which sort as the scores do.

    Args:
        scores: float32 of any shape.

    Returns:
        int64 [32768].
    """
    return np.bincount(np.ascontiguousarray(scores).view(np.uint32).reshape(-1) >> 16, minlength=1 << 15)[: 1 << 15]


def lowest_in_each(histograms: Sequence[NDArray[np.int64]], count: int) -> list[int]:
    """Count how many of the `count` lowest scores are in each part. Ties go to earlier parts.

    Args:
        histograms: the `histogram` of each part.
        count: how many scores are selected in all parts together.

    Example:
        >>> parts = [np.array([1.0, 2.0], np.float32), np.array([0.5, 8.0], np.float32)]
        >>> lowest_in_each([histogram(part) for part in parts], 2)
        [1, 1]
    """
    below = np.cumsum(np.sum(histograms, axis=0))
    bin_ = int(np.searchsorted(below, count))  # the bin of the last of them
    found = [int(one[:bin_].sum()) for one in histograms]
    left = count - sum(found)
    for i, one in enumerate(histograms):
        more = min(left, int(one[bin_]) if bin_ < len(one) else 0)
        found[i], left = found[i] + more, left - more
    return found


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
