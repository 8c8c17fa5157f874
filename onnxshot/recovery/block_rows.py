"""Inputs of products in the float network and in the quantized one: rows to learn from, and rows that decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.execution.layer_rows import Feeds, spread_over
from onnxshot.execution.layer_walk import Values
from onnxshot.recovery.block_products import Product

Floats = NDArray[np.float32]

_CHECKED = 6  # of the samples, every so many-th one is not learned from; of few samples, the last rows of each
_FEW = 6
_AT_ONCE = 2048  # rows whose products are added up at a time
_CHECK_ROWS = 768


@dataclass(frozen=True, slots=True)
class Division:
    """Which rows of which samples are learned from, and which decide whether it helped.

    Attributes:
        masks: for each sample, its inputs that tell which rows are padding, by the shape of what they mask.
        most: rows to learn from, over all samples.
    """

    masks: Sequence[Mapping[tuple[int, ...], NDArray[np.bool_]]]
    most: int

    @classmethod
    def of(cls, feeds: Feeds, most: int) -> Division:
        """Look for attention masks among the inputs."""
        return cls([_masks(feed) for feed in feeds], most)

    def rows(self, sample: int, shape: Sequence[int], *, checks: bool) -> NDArray[np.int64]:
        """Positions of a sample's rows.

        Args:
            sample: number of the sample.
            shape: shape of the tensor without its last axis.
            checks: whether rows that decide are wanted, or rows to learn from.
        """
        count = len(self.masks)
        known = self.masks[sample].get(tuple(shape), self.masks[sample].get((int(np.prod(shape)),)))
        there = np.arange(int(np.prod(shape))) if known is None else np.flatnonzero(known)
        if count > _FEW:
            if (sample % _CHECKED == _CHECKED // 2) != checks:
                return there[:0]
        else:
            last = len(there) - len(there) // _CHECKED
            there = there[last:] if checks else there[:last]
        share = -(-(_CHECK_ROWS if checks else self.most) // self.parts(checks=checks))
        return there[spread_over(len(there), share, sample)] if len(there) > share else there

    def parts(self, *, checks: bool) -> int:
        """Number of samples that rows are taken from."""
        count = len(self.masks)
        if count <= _FEW:
            return max(count, 1)
        decide = sum(sample % _CHECKED == _CHECKED // 2 for sample in range(count))
        return decide if checks else count - decide


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


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What is known of the inputs of a product, x in the float network and y in the quantized one.

    Attributes:
        moments: E[y y'] [k, k] of some of the K inputs, float64.
        cross: E[x y'] [k, k]; None where it is not wanted.
        wanted: mean of x [k].
        got: mean of y [k].
        rows: number of rows.
    """

    moments: NDArray[np.float64]
    cross: NDArray[np.float64] | None
    wanted: NDArray[np.float64]
    got: NDArray[np.float64]
    rows: int

    def centred(self) -> Learned:
        """The same about the means, for a product with a bias, which makes up for them."""
        cross = None if self.cross is None else self.cross - np.outer(self.wanted, self.got)
        return replace(self, moments=self.moments - np.outer(self.got, self.got), cross=cross)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A tensor that products read, in both networks.

    Attributes:
        product: one of the products.
        expert: which of its matrices.
        wanted: values in the float network.
        got: values in the quantized one.
        division: which rows are used.
    """

    product: Product
    expert: int
    wanted: Values
    got: Values
    division: Division

    def _samples(self, *, checks: bool) -> Iterator[tuple[Floats, Floats]]:
        for number in range(len(self.got)):
            shape = self.got[number].shape
            leading = shape[:-1] if len(self.product.shape) == 2 else (int(np.prod(shape[:-1])),)
            if len(self.product.shape) == 3:
                leading = (*shape[:-3], shape[-2])
            at = self.division.rows(number, leading, checks=checks)
            if len(at):
                x, y = (self.product.rows(v[number], self.expert)[at] for v in (self.wanted, self.got))
                yield x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)

    def checks(self) -> tuple[Floats, Floats]:
        """Rows that nothing is learned from: x and y [n, K]."""
        pairs = list(self._samples(checks=True))
        if not pairs:
            none = np.zeros((0, self.product.inputs), np.float32)
            return none, none
        return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])

    def learned(self, part: slice, *, cross: bool) -> Learned:
        """Moments of some of the inputs, over the rows to learn from."""
        width = len(range(*part.indices(self.product.inputs)))
        moments = np.zeros((width, width))
        crossed = np.zeros((width, width)) if cross else None
        wanted, got, rows = np.zeros(width), np.zeros(width), 0
        for x, y in _batches((x[:, part], y[:, part]) for x, y in self._samples(checks=False)):
            moments += y.T @ y
            if crossed is not None:
                crossed += x.T @ y
            wanted += x.sum(axis=0, dtype=np.float64)
            got += y.sum(axis=0, dtype=np.float64)
            rows += len(y)
        count = max(rows, 1)
        for total in (moments, wanted, got, *(() if crossed is None else (crossed,))):
            total /= count
        return Learned(moments, crossed, wanted, got, rows)


def _batches(pairs: Iterator[tuple[Floats, Floats]]) -> Iterator[tuple[Floats, Floats]]:
    """Join pairs to some rows each: adding a matrix of moments for few rows takes longer than computing it."""
    waiting: list[tuple[Floats, Floats]] = []
    for pair in pairs:
        waiting.append(pair)
        if sum(len(y) for _, y in waiting) >= _AT_ONCE:
            yield np.concatenate([x for x, _ in waiting]), np.concatenate([y for _, y in waiting])
            waiting = []
    if waiting:
        yield np.concatenate([x for x, _ in waiting]), np.concatenate([y for _, y in waiting])
