"""Observers: statistics of tensors over a stream of samples, in constant memory.

A sample's tensors are reduced to a `Glimpse`: exact extremes, a subsample of the values, and the extremes of every row.
`Observers` accumulates glimpses into one `TensorStats` per tensor.

To observe a new statistic:

1. Give `Glimpse` a field for it. Fill it in `glimpse` below, and in onnxshot/execution/instrumented_model.py, which
   reduces tensors inside the runtime.
2. Accumulate it in `Observers.add`, and give `TensorStats` (stats.py) a field for the result.
3. Merge it in `stats.merge`, store it in `stats.to_arrays` and `from_arrays`, and raise `_FORMAT` in
   statistics_file.py.
4. Test that any split of the samples merges to the same bits (tests/execution/test_sharding.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.sampling import lengths, strides
from onnxshot.calibration.stats import BINS, MIN_WIDTH_LOG2, NO_STATS, Histogram, TensorStats, to_units, width_of

_BATCH = 16  # glimpses that are counted at once: a call per tensor and sample would cost more than the counting
_BATCH_VALUES = 1 << 21  # values that may wait to be counted
_MOST_ROWS = 8192  # rows of a tensor whose extremes are kept one by one; enough for the channels of any CNN
_KINDS = 3  # kinds of values that are counted: picks, bottoms, tops

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Glimpse:
    """One sample's n tensors, reduced to what calibration keeps of them.

    Tensors are divided into rows. A tensor of rank 3 or more has one row per index of its first two axes, a matrix one
    row per index of its first axis, and any other tensor a single row. The rows of an empty tensor, if any, have the
    extremes inf and -inf.

    Attributes:
        sizes: elements of each tensor, int64 [n].
        picked: sampled values of each tensor, int64 [n].
        rows: rows of each tensor, int64 [n].
        picks: values of every tensor at its stride (see `sampling.strides`), float32, concatenated.
        bottoms, tops: minimum and maximum of every row, float32, concatenated.
        absmax: number of the tensor -> largest absolute value at each index of its last axis, float32.
    """

    sizes: Ints
    picked: Ints
    rows: Ints
    picks: Floats
    bottoms: Floats
    tops: Floats
    absmax: Mapping[int, Floats] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether no tensor holds a NaN or an infinity, as far as can be seen."""
        return bool(self.finite_each.all())

    @property
    def finite_each(self) -> NDArray[np.bool_]:
        """Whether each tensor is free of NaN and infinity, as far as can be seen; bool [n].

        A value that is not finite shows in a row's extreme or in a pick. A NaN also shows where a pick lies beyond the
        extremes, because reductions of some runtimes skip it.
        """
        lows, highs = self.lows, self.highs
        least = _by_tensor(np.minimum, self.picks, self.picked, np.inf)
        most = _by_tensor(np.maximum, self.picks, self.picked, -np.inf)
        # Every comparison with a NaN is false.
        sound: NDArray[np.bool_] = (lows <= least) & (most <= highs) & np.isfinite(lows) & np.isfinite(highs)
        sound |= self.sizes == 0
        return sound

    @cached_property
    def lows(self) -> Floats:
        """Exact minimum of each tensor, float32 [n]; inf where it is empty."""
        return _by_tensor(np.minimum, self.bottoms, self.rows, np.inf)

    @cached_property
    def highs(self) -> Floats:
        """Exact maximum of each tensor, float32 [n]; -inf where it is empty."""
        return _by_tensor(np.maximum, self.tops, self.rows, -np.inf)

    def first(self, n: int) -> Glimpse:
        """The glimpse of the first n tensors."""
        picks, rows = int(self.picked[:n].sum()), int(self.rows[:n].sum())
        absmax = {i: found for i, found in self.absmax.items() if i < n}
        values = self.picks[:picks], self.bottoms[:rows], self.tops[:rows]
        return Glimpse(self.sizes[:n], self.picked[:n], self.rows[:n], *values, absmax)

    def only(self, chosen: NDArray[np.bool_]) -> Glimpse:
        """The glimpse of some of its tensors, without `absmax`. chosen: bool [n]."""
        picks, rows = np.repeat(chosen, self.picked), np.repeat(chosen, self.rows)
        sizes, picked, counts = (part[chosen] for part in (self.sizes, self.picked, self.rows))
        return Glimpse(sizes, picked, counts, self.picks[picks], self.bottoms[rows], self.tops[rows])


def glimpse(values: Sequence[NDArray[Any]], channels: Collection[int] = ()) -> Glimpse:
    """Reduce the tensors of one sample to a `Glimpse`.

    Args:
        values: tensors of any shape and numeric type; they are observed as float32.
        channels: numbers of the tensors whose `absmax` is wanted.

    Returns:
        The glimpse.
    """
    seen = [np.asarray(x, dtype=np.float32) for x in values]
    sizes = np.asarray([x.size for x in seen], np.int64)
    tables = [x.reshape(*x.shape[: row_axes(x.ndim)], math.prod(x.shape[row_axes(x.ndim) :])) for x in seen]
    bottoms = [x.min(axis=-1, initial=np.inf).reshape(-1) for x in tables]
    tops = [x.max(axis=-1, initial=-np.inf).reshape(-1) for x in tables]
    picks = [x.reshape(-1)[:: int(step)] for x, step in zip(seen, strides(sizes), strict=True)]
    absmax = {
        i: np.abs(seen[i].reshape(-1, seen[i].shape[-1])).max(axis=0) for i in channels if seen[i].size and seen[i].ndim
    }
    rows = np.asarray([x.size for x in bottoms], np.int64)
    values_of = [np.concatenate([np.zeros(0, np.float32), *parts]) for parts in (picks, bottoms, tops)]
    return Glimpse(sizes, lengths(sizes), rows, values_of[0], values_of[1], values_of[2], absmax)


def row_axes(rank: int) -> int:
    """Number of leading axes that index the rows of a tensor (see `Glimpse`)."""
    return min(2, max(rank - 1, 0))


def _by_tensor(reduce: np.ufunc, values: Floats, rows: Ints, empty: float) -> Floats:
    """Reduce the values of each tensor to one; `empty` for a tensor without any."""
    found = np.full(len(rows), empty, np.float32)
    filled = np.flatnonzero(rows)
    if filled.size:
        found[filled] = reduce.reduceat(values, (np.cumsum(rows) - rows)[filled])
    return found


def _ends(counts: Ints) -> list[int]:
    """Offsets at which parts of these lengths begin, and the offset at which the last one ends."""
    return [0, *np.cumsum(counts).tolist()]


class Observers:
    """Accumulates the statistics of n tensors, one glimpse at a time.

    It keeps about 100 kB per tensor, whatever the number of samples, and no samples.

    Args:
        n: number of tensors.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._count = np.zeros(n, np.int64)
        self._samples = np.zeros(n, np.int64)
        self._low = np.full(n, np.inf)  # exact extremes so far
        self._high = np.full(n, -np.inf)
        self._sums = [[0, 0] for _ in range(n)]
        self._absmax: dict[int, Floats] = {}
        self._rows: Ints | None = None  # rows of each tensor in the first sample; 0 where another sample differs
        self._row_lows, self._row_highs = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._width = np.full(n, MIN_WIDTH_LOG2)
        self._first = np.zeros(n, np.int64)  # the bin that column 0 of _counts stands for
        self._counts = np.zeros((_KINDS, n, BINS), np.int64)
        self._zeros = np.zeros(n, np.int64)
        self._waiting: list[Glimpse] = []
        self._scaled, self._index = np.empty(0), np.empty(0, np.int64)

    def add(self, seen: Glimpse) -> None:
        """Add a sample.

        Args:
            seen: the glimpse of its tensors, all of whose values are finite.
        """
        lows, highs = seen.lows, seen.highs
        filled = np.flatnonzero(seen.sizes)
        self._count += seen.sizes
        self._samples[filled] += 1
        np.minimum(self._low, lows, out=self._low, where=seen.sizes > 0)
        np.maximum(self._high, highs, out=self._high, where=seen.sizes > 0)
        for i, low, high in zip(filled.tolist(), lows[filled].tolist(), highs[filled].tolist(), strict=True):
            self._sums[i][0] += to_units(low)
            self._sums[i][1] += to_units(high)
        for i, found in seen.absmax.items():
            self._absmax[i] = np.maximum(self._absmax[i], found) if i in self._absmax else found.copy()
        self._add_rows(seen)
        self._waiting.append(seen)
        if len(self._waiting) == _BATCH or sum(s.picks.size for s in self._waiting) >= _BATCH_VALUES:
            self._count_waiting()

    def _add_rows(self, seen: Glimpse) -> None:
        """Update the extremes of every row, for tensors with the same number of rows in every sample."""
        if self._rows is None:
            few = seen.rows <= _MOST_ROWS
            kept = np.repeat(few, seen.rows)
            self._rows = np.where(few, seen.rows, 0)
            self._row_lows, self._row_highs = seen.bottoms[kept], seen.tops[kept]
            return
        same = self._rows == seen.rows
        if not (same | (self._rows == 0)).all():
            kept = np.repeat(same, self._rows)
            self._row_lows, self._row_highs = self._row_lows[kept], self._row_highs[kept]
            self._rows = np.where(same, self._rows, 0)
        bottoms, tops = seen.bottoms, seen.tops
        if len(bottoms) != len(self._row_lows):
            kept = np.repeat(self._rows > 0, seen.rows)
            bottoms, tops = bottoms[kept], tops[kept]
        np.minimum(self._row_lows, bottoms, out=self._row_lows)
        np.maximum(self._row_highs, tops, out=self._row_highs)

    def _count_waiting(self) -> None:
        """Count the values of the waiting glimpses into the histograms, tensor by tensor."""
        picked = [_ends(seen.picked) for seen in self._waiting]
        rows = [_ends(seen.rows) for seen in self._waiting]
        for i in np.flatnonzero(self._count).tolist():
            self._widen(i)
            here = [j for j, seen in enumerate(self._waiting) if seen.sizes[i]]
            if not here:
                continue
            picks = np.concatenate([self._waiting[j].picks[picked[j][i] : picked[j][i + 1]] for j in here])
            bottoms = np.concatenate([self._waiting[j].bottoms[rows[j][i] : rows[j][i + 1]] for j in here])
            tops = np.concatenate([self._waiting[j].tops[rows[j][i] : rows[j][i + 1]] for j in here])
            self._zeros[i] += picks.size - np.count_nonzero(picks)
            for kind, values in enumerate((picks, bottoms, tops)):
                self._counts[kind, i] += np.bincount(self._bins(i, values), minlength=BINS)
        self._waiting.clear()

    def _bins(self, i: int, values: Floats) -> Ints:
        """The column of `_counts` that each value of tensor i falls into; the next call overwrites the array.

        The arrays are reused because allocating them for every call costs three times as much as the arithmetic.
        """
        if values.size > self._index.size:
            self._scaled, self._index = np.empty(values.size), np.empty(values.size, np.int64)
        scaled, index = self._scaled[: values.size], self._index[: values.size]
        # Scaling by a power of two is exact in float64 for every float32, subnormals included.
        np.multiply(values, math.ldexp(1.0, -int(self._width[i])), out=scaled, dtype=np.float64)
        np.copyto(index, np.floor(scaled, out=scaled), casting="unsafe")
        index -= self._first[i]
        return index

    def _widen(self, i: int) -> None:
        """Rebin the counts of tensor i to the smallest bin width that fits its extremes."""
        width, first, last = width_of(float(self._low[i]), float(self._high[i]))
        old_width, old_first = int(self._width[i]), int(self._first[i])
        if width == old_width and old_first <= first and last < old_first + BINS:
            return
        first -= (BINS - (last - first + 1)) // 2  # room on both sides, so that later samples need no rebinning
        for counts in self._counts[:, i]:
            used = np.flatnonzero(counts)
            at = ((used + old_first) >> min(width - old_width, 62)) - first
            counts[:] = np.bincount(at, counts[used], BINS)
        self._width[i], self._first[i] = width, first

    def stats(self) -> list[TensorStats]:
        """Statistics of every tensor so far, in order; `count` is 0 where no sample had an element."""
        if self._waiting:
            self._count_waiting()
        ends = _ends(self._rows if self._rows is not None else np.zeros(self._n, np.int64))
        return [self._stats_of(i, slice(*ends[i : i + 2])) for i in range(self._n)]

    def _stats_of(self, i: int, rows: slice) -> TensorStats:
        if not self._count[i]:
            return NO_STATS
        return TensorStats(
            count=int(self._count[i]),
            samples=int(self._samples[i]),
            low=float(self._low[i]),
            high=float(self._high[i]),
            sum_low=self._sums[i][0],
            sum_high=self._sums[i][1],
            histogram=self._histogram(i, 0),
            bottoms=self._histogram(i, 1),
            tops=self._histogram(i, 2),
            channel_absmax=tuple(self._absmax.get(i, np.zeros(0)).tolist()),
            row_lows=tuple(self._row_lows[rows].tolist()),
            row_highs=tuple(self._row_highs[rows].tolist()),
        )

    def _histogram(self, i: int, kind: int) -> Histogram:
        used = np.flatnonzero(self._counts[kind, i])
        first, last = int(used[0]), int(used[-1])
        counts = self._counts[kind, i, first : last + 1].copy()
        zeros = int(self._zeros[i]) if kind == 0 else 0
        return Histogram(int(self._width[i]), int(self._first[i]) + first, counts, zeros)
