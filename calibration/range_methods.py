"""Range of a tensor from its statistics: which values the codes cover, and what that is expected to cost.

The expected squared error of a range comes from cumulative sums over the histogram, so a candidate costs O(1):
    values inside       step**2 / 12 each: rounding noise, uniform within a step (Widrow)
    values in the cell  x**2 each, where the cell is what rounds to zero (|x| < step / 2); exact zeros cost nothing
    values outside      (x - nearest end)**2 each
The ends are those of the codes after the zero point is rounded, not those that were asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.stats import BINS, Histogram, TensorStats
from onnxshot.maths.affine import QuantScheme, params_from_range
from onnxshot.maths.sqnr import CAP_DB

METHODS = ("auto", "minmax", "moving-average", "percentile", "entropy", "mse")
PERCENTILE = 99.99
MIN_GAIN_DB = 0.1  # auto: below this, clipping is not worth a doubt
TAIL_DB = 10.0  # auto: clipped values that come back worse than this are lost, not shortened
LOST_TAIL_GAIN_DB = 3.0  # auto: what clipping must gain overall before a lost tail is accepted
MAX_LOSS_DB = 10.0  # a method by name: what its clipping may cost against minmax, ten times the noise
_CANDIDATES = np.concatenate([np.linspace(1.0, 0.2, 41), np.geomspace(0.19, 2.0**-10, 23)])
_REFINE = 33
_LEVELS = 128  # of the entropy method, as in TensorRT and onnxruntime
_THRESHOLDS = 48

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Range:
    """The real interval that the codes of a tensor cover. clipped: share of values outside, 0..1.

    note: why the method is not the one that was asked for; empty where it is.
    """

    low: float
    high: float
    method: str
    clipped: float
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """Cumulative sums of 1, x and x**2 up to each bin edge, exact zeros left out; total counts them in."""

    first: int  # bin
    counts: Floats  # exact zeros counted in
    edges: Floats
    s0: Floats
    s1: Floats
    s2: Floats
    total: float
    width: float

    @property
    def energy(self) -> float:
        """Mean of x**2."""
        return float(self.s2[-1]) / self.total


def choose_range(stats: TensorStats, scheme: QuantScheme, method: str = "auto") -> Range:
    """Range of a tensor under a scheme, within its exact extremes. Raises ValueError for no data or another method.

    minmax          the exact extremes
    moving-average  the means of the per-sample extremes
    percentile      PERCENTILE of the values, half of the rest on each side; bins are not split, so rather less
    entropy         least KL divergence between the values and their quantization, shrinking about zero
    mse             least expected squared error, each side on its own
    auto            the least expected error of the above. minmax unless clipping gains MIN_GAIN_DB; and where the
                    clipped values would keep less than TAIL_DB, unless it gains LOST_TAIL_GAIN_DB: the mean error
                    cannot tell outliers that carry meaning, as in transformers, from noise

    A method by name that would cost more than MAX_LOSS_DB against minmax is not obeyed: minmax, with a note.
    """
    if method not in METHODS:
        raise ValueError(f"range method is one of {', '.join(METHODS)}; found {method!r}")
    if stats.count == 0:
        raise ValueError("no values were observed")
    if method == "minmax":
        return Range(stats.low, stats.high, method, 0.0)
    moments = _moments(stats)
    if method == "auto":
        return _auto(stats, scheme, moments)
    chosen = _range(_CHOOSERS[method](stats, scheme, moments), method, stats, moments)
    widest = sum(_error_of(moments, stats.low, stats.high, scheme)[:2])
    loss = _db(sum(_error_of(moments, chosen.low, chosen.high, scheme)[:2]), widest)
    if loss <= MAX_LOSS_DB:
        return chosen
    return Range(stats.low, stats.high, "minmax", 0.0, f"{method} would cost {loss:.0f} dB")


def expected_error(stats: TensorStats, chosen: Range, scheme: QuantScheme) -> float:
    """Mean squared error of quantizing the tensor with this range, from the histogram."""
    return sum(_error_of(_moments(stats), chosen.low, chosen.high, scheme)[:2])


def range_sqnr_db(stats: TensorStats, chosen: Range, scheme: QuantScheme) -> float:
    """SQNR in dB to expect from quantizing the tensor with this range, within -CAP_DB..CAP_DB; all zeros: CAP_DB."""
    return _db(_moments(stats).energy, expected_error(stats, chosen, scheme))


def _auto(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> Range:
    """Pick the least expected error under the rules in choose_range."""
    best = _range((stats.low, stats.high), "minmax", stats, moments)
    minmax_error = sum(_error_of(moments, best.low, best.high, scheme)[:2])
    best_error = minmax_error
    for method, choose in _CHOOSERS.items():
        low, high = choose(stats, scheme, moments)
        inside, outside, tail = _error_of(moments, low, high, scheme)
        error = inside + outside
        lost = outside > 0.0 and _db(tail, outside) < TAIL_DB
        if _db(minmax_error, error) >= (LOST_TAIL_GAIN_DB if lost else MIN_GAIN_DB) and error < best_error:
            best, best_error = _range((low, high), method, stats, moments), error
    return best


def _minmax(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> tuple[float, float]:
    return stats.low, stats.high


def _moving_average(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> tuple[float, float]:
    return stats.mean_low, stats.mean_high


def _percentile(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> tuple[float, float]:
    counts = moments.counts
    tail = float(counts.sum()) * (1.0 - PERCENTILE / 100.0) / 2.0
    below = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
    above = int(np.searchsorted(np.cumsum(counts[::-1]), tail, side="right"))
    return float(moments.edges[below]), float(moments.edges[len(counts) - above])


def _entropy(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> tuple[float, float]:
    """Threshold on |x| with the least KL(P || Q): P is clipped at it, Q has _LEVELS levels. TensorRT, GTC 2017, 8-bit.

    All thresholds at once: within a level Q is flat over the bins in use, so the sum over bins is one over levels.
    """
    counts = _magnitudes(stats, moments)
    size = len(counts)
    levels = min(_LEVELS, 1 << (scheme.dtype.bits - 1))
    if size <= levels or scheme.dtype.floating or scheme.dtype.bits > 8:
        return stats.low, stats.high
    ends = np.unique(np.linspace(levels, size, _THRESHOLDS).astype(np.int64))
    groups = np.rint(ends[:, None] * np.linspace(0.0, 1.0, levels + 1)).astype(np.int64)  # [threshold, level edge]
    mass, used, own = (
        np.concatenate([[0.0], np.cumsum(a)]) for a in (counts, counts > 0, counts * np.log(np.maximum(counts, 1.0)))
    )
    q_mass, q_used = np.diff(mass[groups]), np.maximum(np.diff(used[groups]), 1.0)
    outliers = mass[-1] - mass[ends]
    p_mass = q_mass.copy()
    p_mass[:, -1] += outliers
    last = counts[ends - 1]
    with_outliers = last + outliers
    p_log_p = own[ends - 1] + with_outliers * np.log(np.maximum(with_outliers, 1.0))
    q = np.maximum(q_mass, 1e-4) / q_used / np.maximum(q_mass.sum(axis=1, keepdims=True), 1e-4)
    divergence = (p_log_p - np.sum(p_mass * np.log(q), axis=1)) / mass[-1] - math.log(mass[-1])
    threshold = float(ends[len(ends) - 1 - int(np.argmin(divergence[::-1]))]) * stats.histogram.width
    return max(stats.low, -threshold), min(stats.high, threshold)


def _mse(stats: TensorStats, scheme: QuantScheme, moments: _Moments) -> tuple[float, float]:
    """Grid search over both ends: together, then each side with the other held, then finer about the best."""

    def best(low: Floats, high: Floats) -> tuple[float, float]:
        inside, outside, _ = _errors(moments, low, high, scheme)
        i = int(np.argmin(inside + outside))
        return float(low[i]), float(high[i])

    if scheme.dtype.floating:  # the precision of a float is relative: a smaller range gains nothing
        return stats.low, stats.high
    low0, high0 = min(stats.low, 0.0), max(stats.high, 0.0)
    if scheme.is_symmetric:
        absmax = max(-low0, high0)
        grid = absmax * _CANDIDATES
        low, high = best(np.maximum(-grid, low0), np.minimum(grid, high0))
        grid = _around(max(-low, high), absmax)
        return best(np.maximum(-grid, low0), np.minimum(grid, high0))
    low, high = best(low0 * _CANDIDATES, high0 * _CANDIDATES)
    for refine in (False, True, True):
        if high0 > 0.0:
            grid = _around(high, high0) if refine else high0 * _CANDIDATES
            low, high = best(np.full(grid.shape, low), grid)
        if low0 < 0.0:
            grid = -_around(-low, -low0) if refine else low0 * _CANDIDATES
            low, high = best(grid, np.full(grid.shape, high))
    return low, high


_CHOOSERS: dict[str, Callable[[TensorStats, QuantScheme, _Moments], tuple[float, float]]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def _around(value: float, most: float) -> Floats:
    """Candidates about a value, one coarse step each way, itself among them; descending, at most ``most``."""
    return np.minimum(np.linspace(1.12, 0.88, _REFINE) * value, most)


def _range(ends: tuple[float, float], method: str, stats: TensorStats, moments: _Moments) -> Range:
    """Clamp to the extremes and measure the share outside."""
    low = min(max(ends[0], stats.low), stats.high)
    high = max(min(ends[1], stats.high), low)
    at_low, at_high = np.interp([low, high], moments.edges, moments.s0)
    clipped = (float(at_low) + float(moments.s0[-1] - at_high)) / moments.total
    # Exact zeros are never clipped: quantization widens every range to hold 0.
    return Range(low, high, method, clipped if (low, high) != (stats.low, stats.high) else 0.0)


def _moments(stats: TensorStats) -> _Moments:
    """Sum up the histogram, its outer edges drawn in to the exact extremes."""
    first, everything = distribution(stats)
    counts = everything.copy()
    if stats.histogram.zeros:
        counts[-first] -= stats.histogram.zeros  # 0.0 lies in the bin whose lower edge is 0
    edges = (first + np.arange(len(counts) + 1)) * stats.histogram.width
    edges = np.clip(edges, stats.low, stats.high)
    center = 0.5 * (edges[1:] + edges[:-1])
    square = (edges[1:] ** 2 + edges[1:] * edges[:-1] + edges[:-1] ** 2) / 3.0  # mean of x**2 over a bin
    s0, s1, s2 = (np.concatenate([[0.0], np.cumsum(a)]) for a in (counts, counts * center, counts * square))
    total = float(s0[-1]) + stats.histogram.zeros
    return _Moments(first, everything, edges, s0, s1, s2, total, stats.histogram.width)


def distribution(stats: TensorStats) -> tuple[int, Floats]:
    """(first bin, counts [n]) of all values, in units of the subsample's counts and at its bin width.

    The subsample tells how the many are distributed and misses the few; the extremes of the rows tell of the few: at
    least as many values lie above t as rows have their top above t. Either may count too few, neither too many but by
    chance, so the larger count is taken, from the outside in to the middle of the subsample. Where the subsample is
    everything, so is the result.
    """
    h, bottoms, tops = stats.histogram, stats.bottoms, stats.tops
    first, last = bottoms.first, tops.first + len(tops.counts) - 1
    counts, below, above = (_on(part, first, last) for part in (h, bottoms, tops))
    share = h.total / stats.count
    middle = int(np.searchsorted(np.cumsum(counts), 0.5 * h.total))
    down = np.maximum(np.cumsum(counts), share * np.cumsum(below))[: middle + 1]
    up = np.maximum(np.cumsum(counts[::-1]), share * np.cumsum(above[::-1]))[: last - first - middle]
    found = np.concatenate([np.diff(down, prepend=0.0), np.diff(up, prepend=0.0)[::-1]])
    found[middle] += max(h.total - found.sum(), 0.0)
    return first, found


def _on(h: Histogram, first: int, last: int) -> Floats:
    """Counts of a histogram on bins first..last of its own width, which hold it."""
    counts = np.zeros(last - first + 1)
    counts[h.first - first : h.first - first + len(h.counts)] = h.counts
    return counts


def _errors(moments: _Moments, low: Floats, high: Floats, scheme: QuantScheme) -> tuple[Floats, Floats, Floats]:
    """(error inside, error outside, energy of the values outside), means over all values; low, high [n] -> [n] each."""
    params = params_from_range(low, high, scheme)
    step, zero = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
    qmin, qmax = scheme.limits
    bottom, top = (qmin - zero) * step, (qmax - zero) * step
    at = np.stack([bottom, top, np.maximum(-0.5 * step, bottom), np.minimum(0.5 * step, top)])
    n, x1, x2 = (np.interp(at, moments.edges, s) for s in (moments.s0, moments.s1, moments.s2))
    total0, total1, total2 = (float(s[-1]) for s in (moments.s0, moments.s1, moments.s2))
    under = x2[0] - 2.0 * bottom * x1[0] + bottom**2 * n[0]
    over = (total2 - x2[1]) - 2.0 * top * (total1 - x1[1]) + top**2 * (total0 - n[1])
    outside = np.maximum(under, 0.0) + np.maximum(over, 0.0)
    tail = x2[0] + total2 - x2[1]
    if scheme.dtype.floating:
        inside = _float_noise(moments, step, bottom, top, scheme)
    else:
        noise = step**2 / 12.0
        cell_count, cell_energy = n[3] - n[2], x2[3] - x2[2]
        # A cell within a bin or two has no shape to speak of; there, as elsewhere, take the values as uniform.
        cell = np.where(step > 2.0 * moments.width, cell_energy, cell_count * noise)
        inside = cell + np.maximum(n[1] - n[0] - cell_count, 0.0) * noise
    return inside / moments.total, outside / moments.total, tail / moments.total


def _float_noise(moments: _Moments, step: Floats, bottom: Floats, top: Floats, scheme: QuantScheme) -> Floats:
    """Sum the rounding noise of float8 over the bins inside: spacing grows with |x|. E4M3FN, OCP OFP8 1.0."""
    mantissa, least_exponent = 3, -6
    center = 0.5 * (moments.edges[1:] + moments.edges[:-1])
    counts = np.diff(moments.s0)
    keep = counts > 0
    center, counts = center[keep], counts[keep]
    steps = np.abs(center) / step[:, None]
    exponent = np.maximum(np.frexp(steps)[1] - 1, least_exponent)
    spacing = np.ldexp(step[:, None], exponent - mantissa)
    inside = (center >= bottom[:, None]) & (center <= top[:, None])
    noise: Floats = np.where(inside, spacing**2 / 12.0, 0.0) @ counts
    return noise


def _error_of(moments: _Moments, low: float, high: float, scheme: QuantScheme) -> tuple[float, float, float]:
    """_errors of one range."""
    inside, outside, tail = _errors(moments, np.asarray([low]), np.asarray([high]), scheme)
    return float(inside[0]), float(outside[0]), float(tail[0])


def _magnitudes(stats: TensorStats, moments: _Moments) -> Floats:
    """Fold the histogram to |x|, exact zeros left out: bin i covers [i, i + 1) widths. Empty if far from zero."""
    first, counts = moments.first, moments.counts.copy()
    if stats.histogram.zeros:
        counts[-first] -= stats.histogram.zeros
    index = first + np.arange(len(counts))
    magnitude = np.where(index >= 0, index, -1 - index)
    if magnitude.max() >= 2 * BINS:
        return np.zeros(0)
    return np.bincount(magnitude, weights=counts).astype(np.float64)


def _db(signal: float, noise: float) -> float:
    """Ratio in dB within -CAP_DB..CAP_DB."""
    if noise <= 0.0:
        return CAP_DB
    if signal <= 0.0:
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10.0 * (math.log10(signal) - math.log10(noise))))
