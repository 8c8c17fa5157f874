"""What calibration remembers of a tensor: extremes, per-sample extremes, and a histogram that merges exactly.

Bin widths are powers of two and bin edges are multiples of the width, so that bins of one width are unions of bins of
any smaller width: floor(floor(x / a) / b) == floor(x / (a * b)). The width of a histogram is the smallest one that
fits its values (see `_fits`), a property of the values alone. Hence one run, and any shards merged in any order, give
the same bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
MIN_WIDTH_LOG2 = -149  # the spacing of float32 subnormals
_INDEX_BITS = 23  # bins finer than the float32 spacing of the largest value would tell nothing


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values; bin i covers [(first + i) * 2**width_log2, (first + i + 1) * 2**width_log2).

    At most BINS bins, int64; the outer ones are not empty. ``zeros`` of the counted values are exactly 0.0: they cost
    nothing to quantize, however wide their bin is. Without any value: counts has length 0.
    """

    width_log2: int
    first: int
    counts: NDArray[np.int64]
    zeros: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = (self.width_log2, self.first, self.zeros), (other.width_log2, other.first, other.zeros)
        return mine == theirs and np.array_equal(self.counts, other.counts)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.width_log2)

    @property
    def total(self) -> int:
        """Number of counted values."""
        return int(self.counts.sum())


EMPTY = Histogram(MIN_WIDTH_LOG2, 0, np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of one tensor over a calibration run; some 100 kB at most, whatever the number of samples.

    count: elements seen. samples: updates with at least one element. low, high: exact extremes over all elements.
    sum_low, sum_high: sums of the per-sample extremes in units of 2**-149, integers because sums of floats would
    depend on the order of the samples. histogram: of a subsample of each sample. bottoms, tops: histograms of the
    least and the largest value of every row (see `Glimpse`): rare values, which a subsample misses. channel_absmax:
    largest absolute value of each index of the last axis; empty where that was not asked for. row_lows, row_highs:
    extremes of every row over the samples, which in a CNN with one picture a sample are those of every channel; empty
    where samples have different numbers of rows.
    """

    count: int
    samples: int
    low: float
    high: float
    sum_low: int
    sum_high: int
    histogram: Histogram
    bottoms: Histogram
    tops: Histogram
    channel_absmax: tuple[float, ...] = ()
    row_lows: tuple[float, ...] = ()
    row_highs: tuple[float, ...] = ()

    @property
    def mean_low(self) -> float:
        """Mean over samples of the least value."""
        return _from_units(self.sum_low, self.samples)

    @property
    def mean_high(self) -> float:
        """Mean over samples of the largest value."""
        return _from_units(self.sum_high, self.samples)


NO_STATS = TensorStats(0, 0, math.inf, -math.inf, 0, 0, EMPTY, EMPTY, EMPTY)


def merge(a: TensorStats, b: TensorStats) -> TensorStats:
    """Stats of both sets of samples: associative, commutative and exact to the bit; NO_STATS is neutral."""
    if not a.count or not b.count:
        return a if a.count else b
    low, high = min(a.low, b.low), max(a.high, b.high)
    width_log2, _, _ = width_of(low, high)
    return TensorStats(
        a.count + b.count,
        a.samples + b.samples,
        low,
        high,
        a.sum_low + b.sum_low,
        a.sum_high + b.sum_high,
        _merge_histograms(a.histogram, b.histogram, width_log2),
        _merge_histograms(a.bottoms, b.bottoms, width_log2),
        _merge_histograms(a.tops, b.tops, width_log2),
        _widest(a.channel_absmax, b.channel_absmax),
        _each(min, a.row_lows, b.row_lows),
        _each(max, a.row_highs, b.row_highs),
    )


def _widest(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """Channel by channel the larger; a set of samples without channels adds nothing."""
    return tuple(map(max, a, b)) if a and b else a or b


def _each(
    choose: Callable[[float, float], float], a: tuple[float, ...], b: tuple[float, ...]
) -> tuple[float, ...]:
    """Row by row one of both; none where the samples have different numbers of rows."""
    return tuple(map(choose, a, b)) if len(a) == len(b) else ()


def _merge_histograms(a: Histogram, b: Histogram, width_log2: int) -> Histogram:
    """Histogram of both sets of values at a width that fits them and is not smaller than their own."""
    spans = [_span(h, width_log2) for h in (a, b)]
    first, last = min(s[0] for s in spans), max(s[1] for s in spans)
    counts = np.zeros(last - first + 1, np.int64)
    for h in (a, b):
        shift = width_log2 - h.width_log2
        np.add.at(counts, ((h.first + np.arange(len(h.counts))) >> min(shift, 62)) - first, h.counts)
    return Histogram(width_log2, first, counts, a.zeros + b.zeros)


def width_of(low: float, high: float) -> tuple[int, int, int]:
    """(log2 of the smallest bin width that fits values in low..high, first bin, last bin)."""
    absmax, spread = max(-low, high), high - low
    # Lower bounds of the width from both conditions of _fits, then a step or two up to the exact one.
    width_log2 = MIN_WIDTH_LOG2
    if absmax > 0.0:
        width_log2 = max(width_log2, math.frexp(absmax)[1] - _INDEX_BITS - 1)
    if spread > 0.0:
        width_log2 = max(width_log2, math.frexp(spread / BINS)[1] - 1)
    while not _fits(first := _index(low, width_log2), last := _index(high, width_log2)):
        width_log2 += 1
    return width_log2, first, last


def to_units(value: float) -> int:
    """Express a float32 value in units of 2**-149, exactly."""
    numerator, denominator = value.as_integer_ratio()
    return (numerator << -MIN_WIDTH_LOG2) // denominator


def to_arrays(stats: Mapping[str, TensorStats]) -> dict[str, NDArray[Any]]:
    """Arrays for one np.savez of many tensors, without pickle: a few flat arrays, whatever the tensor names are."""
    items = list(stats.values())
    histograms = [h for s in items for h in (s.histogram, s.bottoms, s.tops)]
    return {
        "names": np.asarray(list(stats), dtype=np.str_),
        "integers": np.asarray(
            [[s.count, s.samples, len(s.channel_absmax), len(s.row_lows)] for s in items], np.int64
        ).reshape(-1, 4),
        "extremes": np.asarray([[s.low, s.high] for s in items], dtype=np.float64).reshape(-1, 2),
        "sums": np.asarray([[str(s.sum_low), str(s.sum_high)] for s in items], dtype=np.str_).reshape(-1, 2),
        "histograms": np.asarray(
            [[h.width_log2, h.first, len(h.counts), h.zeros] for h in histograms], dtype=np.int64
        ).reshape(-1, 3, 4),
        "counts": np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
        "channels": np.asarray([v for s in items for v in s.channel_absmax], dtype=np.float32),
        "rows": np.asarray(
            [[v for s in items for v in s.row_lows], [v for s in items for v in s.row_highs]], dtype=np.float32
        ),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, TensorStats]:
    """Inverse of to_arrays, exact; takes the mapping that np.load gives. Raises ValueError where they do not fit."""
    integers, extremes, sums, counts = (arrays[key] for key in ("integers", "extremes", "sums", "counts"))
    shapes, rows = arrays["histograms"], arrays["rows"]
    names, channels = arrays["names"].tolist(), arrays["channels"].tolist()
    n = len(names)
    if not (integers.shape == (n, 4) and extremes.shape == sums.shape == (n, 2) and shapes.shape == (n, 3, 4)):
        raise ValueError("the tables of the statistics are not of one length")
    if int(shapes[:, :, 2].sum()) != len(counts) or int(integers[:, 2].sum()) != len(channels):
        raise ValueError("the statistics hold more or fewer counts than they say")
    if rows.shape != (2, int(integers[:, 3].sum())):
        raise ValueError("the statistics hold more or fewer rows than they say")
    row_lows, row_highs = rows.tolist()
    stats: dict[str, TensorStats] = {}
    start = begin = row = 0
    for i, name in enumerate(names):
        count, samples, width, length = (int(v) for v in integers[i])
        histograms: list[Histogram] = []
        for width_log2, first, bins, zeros in shapes[i].tolist():
            histograms.append(Histogram(width_log2, first, counts[start : start + bins], zeros))
            start += bins
        picks, bottoms, tops = histograms
        low, high = (float(v) for v in extremes[i])
        sum_low, sum_high = (int(v) for v in sums[i])
        absmax = tuple(channels[begin : begin + width])
        begin += width
        lows, highs = (tuple(part[row : row + length]) for part in (row_lows, row_highs))
        row += length
        stats[name] = TensorStats(
            count, samples, low, high, sum_low, sum_high, picks, bottoms, tops, absmax, lows, highs
        )
    return stats


def _fits(first: int, last: int) -> bool:
    """Tell whether bins first..last are few enough, and no finer than float32 spacing at the largest value."""
    return last - first < BINS and first >= -(1 << _INDEX_BITS) and last < 1 << _INDEX_BITS


def _index(value: float, width_log2: int) -> int:
    """Index of the bin of a value."""
    return math.floor(value * math.ldexp(1.0, -width_log2))


def _span(h: Histogram, width_log2: int) -> tuple[int, int]:
    """(first, last) bin of h at a width that is not smaller than its own."""
    shift = width_log2 - h.width_log2
    return h.first >> shift, (h.first + len(h.counts) - 1) >> shift


def _from_units(total: int, samples: int) -> float:
    """Mean of values summed in units of 2**-149."""
    return total / (samples << -MIN_WIDTH_LOG2) if samples else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Extremes of a tensor over some samples, and its most elements in one; infinite where any value was not finite."""

    low: float
    high: float
    size: int

    @property
    def absmax(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)
