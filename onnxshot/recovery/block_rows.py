"""Inputs of products as rows: those that are learned from, and those that decide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.execution.layer_rows import Feeds, spread_over
from onnxshot.execution.layer_walk import Values
from onnxshot.recovery.block_products import Product

Floats = NDArray[np.float32]

_EVERY = 6
_AT_ONCE = 2048  # rows whose products are added up at a time
_CHECK_ROWS = 768  # rows that decide, over all samples


@dataclass(frozen=True, slots=True)
class Division:
    """Which rows of which samples are learned from, and which decide whether it helped.

    Of more than six samples every sixth decides; else the last sixth of the rows of each, but not of a single row.

    Attributes:
        masks: for each sample, which of its rows are not padding, by the shape of what is masked.
        most: rows to learn from, over all samples.
    """

    masks: Sequence[Mapping[tuple[int, ...], NDArray[np.bool_]]]
    most: int

    @classmethod
    def of(cls, feeds: Feeds, most: int) -> Division:
        """Look for attention masks among the inputs."""
        return cls([_masks(feed) for feed in feeds], most)

    @property
    def deciding(self) -> list[int]:
        """Numbers of the samples that have rows which decide."""
        count = len(self.masks)
        return [n for n in range(count) if count <= _EVERY or n % _EVERY == _EVERY // 2]

    def rows(self, sample: int, shape: tuple[int, ...], *, checks: bool) -> NDArray[np.int64]:
        """Positions of rows of a sample.

        Args:
            sample: its number.
            shape: shape of the tensor without its last axis.
            checks: whether rows that decide are wanted, or rows to learn from.
        """
        samples, total = len(self.masks), math.prod(shape)
        known = self.masks[sample].get(shape, self.masks[sample].get((total,)))
        there = np.arange(total) if known is None else np.flatnonzero(known)
        if samples <= _EVERY:
            last = len(there) - len(there) // _EVERY
            there = there[last:] if checks else there[:last]
        elif (sample in self.deciding) != checks:
            return there[:0]
        of = samples if samples <= _EVERY else len(self.deciding) if checks else samples - len(self.deciding)
        share = -(-(_CHECK_ROWS if checks else self.most) // of)
        return there[spread_over(len(there), share, sample)] if len(there) > share else there


def _masks(feed: Mapping[str, NDArray[Any]]) -> dict[tuple[int, ...], NDArray[np.bool_]]:
    """Masks of a sample, by the shape of what they mask: [B, S], and B * S of rows without axes.

    A mask of more tokens than there are, as the tokens of pasts are masked too, ends with theirs. Masks of the same
    shape that differ tell nothing.
    """
    found: dict[tuple[int, ...], NDArray[np.bool_]] = {}
    unclear = set()
    ids = [v.shape for name, v in feed.items() if name.endswith("input_ids") and v.ndim == 2]
    for name, values in feed.items():
        if not name.endswith("attention_mask") or values.ndim != 2:
            continue
        lengths = {values.shape[1]} | {s[1] for s in ids if s[0] == values.shape[0] and s[1] < values.shape[1]}
        for length in lengths:
            mask = values[:, values.shape[1] - length :] != 0
            for shape in (mask.shape, (mask.size,)):
                if shape in found and not np.array_equal(found[shape].reshape(-1), mask.reshape(-1)):
                    unclear.add(shape)
                found[shape] = mask.reshape(-1)
    return {shape: mask for shape, mask in found.items() if shape not in unclear}


@dataclass(frozen=True, slots=True)
class Inputs:
    """A tensor that products read.

    Attributes:
        product: one of the products.
        expert: which of its matrices.
        values: the tensor, one array per sample.
        samples: the numbers of these samples.
        division: which rows are used.
    """

    product: Product
    expert: int
    values: Values
    samples: Sequence[int]
    division: Division

    def checks(self) -> Floats:
        """Rows that nothing is learned from [n, K]."""
        found = list(self._rows(checks=True))
        return np.concatenate(found) if found else np.zeros((0, self.product.inputs), np.float32)

    def count(self) -> int:
        """Number of rows to learn from."""
        return sum(map(len, self._rows(checks=False)))

    def means(self) -> NDArray[np.float64]:
        """Mean of the rows to learn from, of each sample that has any [S, K]."""
        found = [rows.mean(axis=0, dtype=np.float64) for rows in self._rows(checks=False)]
        return np.stack(found) if found else np.zeros((1, self.product.inputs))

    def moments(self, part: slice, centre: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Second moments [k, k] of some of the inputs over the rows to learn from, about a centre [K] or about zero."""
        width = len(range(*part.indices(self.product.inputs)))
        total, count = np.zeros((width, width)), 0
        shift = None if centre is None else centre[part].astype(np.float32)
        for rows in _batches(self._rows(checks=False)):
            some = rows[:, part] if shift is None else rows[:, part] - shift
            total += some.T @ some
            count += len(some)
        total /= max(count, 1)
        return total

    def _rows(self, *, checks: bool) -> Iterator[Floats]:
        for values, number in zip(self.values, self.samples, strict=True):
            at = self.division.rows(number, self.product.places(values.shape), checks=checks)
            if len(at):
                yield self.product.rows(values, self.expert)[at].astype(np.float32, copy=False)


def _batches(parts: Iterator[Floats]) -> Iterator[Floats]:
    """Join rows: adding a matrix of moments for few rows takes longer than computing it."""
    waiting: list[Floats] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)
