"""Statistics of one tensor: extremes, means of per-sample extremes, and histograms that merge exactly.

Bin widths are powers of two and bin edges are multiples of the width. A bin is therefore a union of bins of any smaller
width: floor(floor(x / a) / b) == floor(x / (a * b)). The width of a histogram is the smallest one that fits its values
(see `_fits`), so that it depends on the values alone. Hence one run, and any shards merged in any order, give the same
bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
MIN_WIDTH_LOG2 = -149  # the spacing of float32 subnormals
_INDEX_BITS = 23  # bins need not be finer than the float32 spacing at the largest value


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values in bins whose width is a power of two.

    Bin i covers [(first + i) * 2**width_log2, (first + i + 1) * 2**width_log2).

    Attributes:
        width_log2: log2 of the bin width.
        first: index of the first bin.
        counts: values per bin, int64 [n], n <= BINS; the outer bins are not empty. n is 0 where there are no values.
        zeros: how many of the values are exactly 0.0. They are quantized without error, however wide their bin is.
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
        """Width of a bin, in the units of the tensor."""
        return math.ldexp(1.0, self.width_log2)

    @property
    def total(self) -> int:
        """Number of counted values."""
        return int(self.counts.sum())


EMPTY = Histogram(MIN_WIDTH_LOG2, 0, np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of one tensor over a calibration run; about 100 kB at most, whatever the number of samples.

    Attributes:
        count: elements observed.
        samples: samples in which the tensor had at least one element.
        low, high: exact extremes over all elements.
        sum_low, sum_high: sums of the per-sample extremes, in units of 2**-149. They are integers, because a sum of
            floats would depend on the order of the samples.
        histogram: of a subsample of the values of each sample.
        bottoms, tops: histograms of the minimum and the maximum of every row (see `Glimpse`). They show rare values,
            which the subsample may miss.
        channel_absmax: largest absolute value at each index of the last axis; empty where it was not asked for.
        row_lows, row_highs: extremes of every row over the samples; empty where samples differ in the number of rows.
            In a CNN with one picture per sample, a row is a channel.
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
        """Mean over samples of the per-sample minimum."""
        return _from_units(self.sum_low, self.samples)

    @property
    def mean_high(self) -> float:
        """Mean over samples of the per-sample maximum."""
        return _from_units(self.sum_high, self.samples)


NO_STATS = TensorStats(0, 0, math.inf, -math.inf, 0, 0, EMPTY, EMPTY, EMPTY)


def merge(a: TensorStats, b: TensorStats) -> TensorStats:
    """Statistics over the samples of both: exact to the bit, associative and commutative; NO_STATS is neutral."""
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


def merged(some: Mapping[str, TensorStats], others: Mapping[str, TensorStats]) -> dict[str, TensorStats]:
    """Statistics of the first tensors over the samples of both."""
    return {name: merge(one, others[name]) if name in others else one for name, one in some.items()}


def _widest(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """The larger value of each channel; where only one side has channels, that side."""
    return tuple(map(max, a, b)) if a and b else a or b


def _each(
    choose: Callable[[float, float], float], a: tuple[float, ...], b: tuple[float, ...]
) -> tuple[float, ...]:
    """One of the two values of each row, as `choose` says; empty where the numbers of rows differ."""
    return tuple(map(choose, a, b)) if len(a) == len(b) else ()


def _merge_histograms(a: Histogram, b: Histogram, width_log2: int) -> Histogram:
    """Histogram of the values of both, at a bin width that is not smaller than either's own."""
    spans = [_span(h, width_log2) for h in (a, b)]
    first, last = min(s[0] for s in spans), max(s[1] for s in spans)
    counts = np.zeros(last - first + 1, np.int64)
    for h in (a, b):
        shift = width_log2 - h.width_log2
        np.add.at(counts, ((h.first + np.arange(len(h.counts))) >> min(shift, 62)) - first, h.counts)
    return Histogram(width_log2, first, counts, a.zeros + b.zeros)


def width_of(low: float, high: float) -> tuple[int, int, int]:
    """The smallest bin width that fits the values low..high: (log2 of it, first bin, last bin)."""
    absmax, spread = max(-low, high), high - low
    # Start from lower bounds that follow from both conditions of _fits; the exact width is a step or two above.
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
    """The statistics of many tensors as a few flat arrays, for np.savez without pickle.

    The names of tensors are stored as values, not as keys, so that any name works.
    """
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
    """Inverse of `to_arrays`, exact. Raises ValueError where the arrays do not fit each other."""
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
    """Whether bins first..last are at most BINS, and no finer than the float32 spacing at the largest value."""
    return last - first < BINS and first >= -(1 << _INDEX_BITS) and last < 1 << _INDEX_BITS


def _index(value: float, width_log2: int) -> int:
    """Index of the bin of a value."""
    return math.floor(value * math.ldexp(1.0, -width_log2))


def _span(h: Histogram, width_log2: int) -> tuple[int, int]:
    """First and last bin of a histogram, once it is rebinned to a width that is not smaller than its own."""
    shift = width_log2 - h.width_log2
    return h.first >> shift, (h.first + len(h.counts) - 1) >> shift


def _from_units(total: int, samples: int) -> float:
    """Mean over samples of a sum in units of 2**-149; 0 without samples."""
    return total / (samples << -MIN_WIDTH_LOG2) if samples else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Extremes of a tensor over some samples.

    Attributes:
        low, high: the extremes; infinite where a value was not finite.
        size: most elements that the tensor had in one sample.
    """

    low: float
    high: float
    size: int

    @property
    def absmax(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)
