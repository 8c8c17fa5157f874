"""Range methods: choose the interval of real values that the codes of a tensor cover.

To add a range method:

1. Write a function that takes a tensor's statistics, its scheme and the moments of its histogram, and returns the two
   ends of the range, (low, high). `_percentile` below is a short example.
2. Add it to `_CHOOSERS` at the end of this file, under the name that users give. That registers it: `METHODS`, the keys
   `method` of recipes and the method `auto`, which also tries it, are made from this table.
3. Describe it in `choose_range` and in the help of `--method` (onnxshot/cli/quantize.py, docs/command-line.md), and
   test it in tests/calibration/test_ranges.py.

The error that a range is expected to cost is computed in `range_error`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.range_error import Moments, decibels, error_of, errors, moments_of
from onnxshot.calibration.stats import BINS, TensorStats
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError
from onnxshot.maths.affine import QuantScheme

PERCENTILE = 99.99
"""Percent of the values that method percentile keeps inside the range."""
MIN_GAIN_DB = 0.1
"""Least gain in SQNR for which method auto clips at all."""
TAIL_DB = 10.0
"""Least SQNR of the clipped values alone; below it, method auto regards them as lost instead of shortened."""
LOST_TAIL_GAIN_DB = 3.0
"""Least gain in SQNR for which method auto accepts that clipped values are lost."""
MAX_LOSS_DB = 10.0
"""Most SQNR that a method asked for by name may lose against minmax: ten times the noise."""
_CANDIDATES = np.concatenate([np.linspace(1.0, 0.2, 41), np.geomspace(0.19, 2.0**-10, 23)])
_REFINE = 33
_LEVELS = 128  # of method entropy, as in TensorRT and onnxruntime
_THRESHOLDS = 48

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Range:
    """The interval of real values that the codes of a tensor cover.

    Attributes:
        low, high: ends of the interval, in the units of the tensor.
        method: the range method that chose it.
        clipped: share 0..1 of the values that lie outside.
        note: why another method was used than the one asked for; empty where it was used.
    """

    low: float
    high: float
    method: str
    clipped: float
    note: str = ""


def choose_range(stats: TensorStats, scheme: QuantScheme, method: str = "auto") -> Range:
    """Choose the range of a tensor, within its exact extremes.

    Methods:
        minmax: the exact extremes.
        moving-average: the means over samples of the per-sample extremes.
        percentile: the central PERCENTILE percent of the values. Bins are not split, so slightly fewer are clipped.
        entropy: the threshold on |x| with the least KL divergence between the values and their quantization (TensorRT).
        mse: the least expected squared error; a grid search over both ends.
        auto: the method above with the least expected squared error. It stays with minmax unless clipping gains
            MIN_GAIN_DB. Where the clipped values alone would have an SQNR below TAIL_DB, clipping must gain
            LOST_TAIL_GAIN_DB: the mean error cannot distinguish noise from outliers that carry meaning, as in
            transformers.

    A method asked for by name falls back to minmax, with a note, where it would lose more than MAX_LOSS_DB against it.

    Args:
        stats: statistics of the tensor over the calibration samples.
        scheme: type and symmetry of the codes.
        method: one of `known_methods()`.

    Returns:
        The range, with the method that chose it.

    Raises:
        ValueError: the method is unknown, or no values were observed.
        CalibrationError: a method of the caller fails.
    """
    if method not in known_methods():
        raise ValueError(f"range method is one of {', '.join(known_methods())}; found {method!r}")
    if stats.count == 0:
        raise ValueError("no values were observed")
    if method == "minmax":
        return Range(stats.low, stats.high, method, 0.0)
    moments = moments_of(stats)
    if method == "auto":
        return _auto(stats, scheme, moments)
    ends = _given(stats, moments, method) if method in _GIVEN else _CHOOSERS[method](stats, scheme, moments)
    chosen = _range(ends, method, stats, moments)
    widest = sum(error_of(moments, stats.low, stats.high, scheme)[:2])
    loss = decibels(sum(error_of(moments, chosen.low, chosen.high, scheme)[:2]), widest)
    if loss <= MAX_LOSS_DB:
        return chosen
    return Range(stats.low, stats.high, "minmax", 0.0, f"{method} would cost {loss:.0f} dB")


def expected_error(stats: TensorStats, chosen: Range, scheme: QuantScheme) -> float:
    """Expected mean squared error of quantizing a tensor with this range, estimated from its histogram."""
    return sum(error_of(moments_of(stats), chosen.low, chosen.high, scheme)[:2])


def range_sqnr_db(stats: TensorStats, chosen: Range, scheme: QuantScheme) -> float:
    """Expected SQNR in dB of quantizing a tensor with this range, clipped to -CAP_DB..CAP_DB; CAP_DB for all zeros."""
    return decibels(moments_of(stats).energy, expected_error(stats, chosen, scheme))


def _auto(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> Range:
    """The method with the least expected error, under the rules of method auto in `choose_range`."""
    best = _range((stats.low, stats.high), "minmax", stats, moments)
    minmax_error = sum(error_of(moments, best.low, best.high, scheme)[:2])
    best_error = minmax_error
    for method, choose in _CHOOSERS.items():
        low, high = choose(stats, scheme, moments)
        inside, outside, tail = error_of(moments, low, high, scheme)
        error = inside + outside
        lost = outside > 0.0 and decibels(tail, outside) < TAIL_DB
        if decibels(minmax_error, error) >= (LOST_TAIL_GAIN_DB if lost else MIN_GAIN_DB) and error < best_error:
            best, best_error = _range((low, high), method, stats, moments), error
    return best


def _minmax(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> tuple[float, float]:
    return stats.low, stats.high


def _moving_average(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> tuple[float, float]:
    return stats.mean_low, stats.mean_high


def _percentile(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> tuple[float, float]:
    counts = moments.counts
    tail = float(counts.sum()) * (1.0 - PERCENTILE / 100.0) / 2.0
    below = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
    above = int(np.searchsorted(np.cumsum(counts[::-1]), tail, side="right"))
    return float(moments.edges[below]), float(moments.edges[len(counts) - above])


def _entropy(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> tuple[float, float]:
    """Threshold on |x| with the least KL(P || Q), where P is clipped and Q has _LEVELS levels.

    The method of "8-bit Inference with TensorRT" (GTC 2017). All thresholds are evaluated at once. Within a
    level, Q is constant over the bins in use, so that the sum over bins becomes a sum over levels.
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


def _mse(stats: TensorStats, scheme: QuantScheme, moments: Moments) -> tuple[float, float]:
    """Grid search for the least expected error: both ends together, then each end alone, then a finer grid."""

    def best(low: Floats, high: Floats) -> tuple[float, float]:
        inside, outside, _ = errors(moments, low, high, scheme)
        i = int(np.argmin(inside + outside))
        return float(low[i]), float(high[i])

    if scheme.dtype.floating:  # the precision of floats is relative, so that a smaller range gains nothing
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


def _around(value: float, most: float) -> Floats:
    """Candidates around a value, one step of the coarse grid each way; descending, and at most `most`."""
    return np.minimum(np.linspace(1.12, 0.88, _REFINE) * value, most)


def _range(ends: tuple[float, float], method: str, stats: TensorStats, moments: Moments) -> Range:
    """The range with these ends, clipped to the exact extremes, and the share of values outside."""
    low = min(max(ends[0], stats.low), stats.high)
    high = max(min(ends[1], stats.high), low)
    at_low, at_high = np.interp([low, high], moments.edges, moments.s0)
    clipped = (float(at_low) + float(moments.s0[-1] - at_high)) / moments.total
    # Exact zeros are never clipped: quantization widens every range to hold 0.
    return Range(low, high, method, clipped if (low, high) != (stats.low, stats.high) else 0.0)


def _magnitudes(stats: TensorStats, moments: Moments) -> Floats:
    """Histogram of |x| without exact zeros; bin i covers [i, i + 1) widths. Empty if all values are far from zero."""
    first, counts = moments.first, moments.counts.copy()
    if stats.histogram.zeros:
        counts[-first] -= stats.histogram.zeros
    index = first + np.arange(len(counts))
    magnitude = np.where(index >= 0, index, -1 - index)
    if magnitude.max() >= 2 * BINS:
        return np.zeros(0)
    return np.bincount(magnitude, weights=counts).astype(np.float64)


_Chooser = Callable[[TensorStats, QuantScheme, Moments], tuple[float, float]]
_CHOOSERS: dict[str, _Chooser] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
"""The function of each range method, by the name that users give."""

METHODS = ("auto", *_CHOOSERS)
"""Names of the range methods."""

RangeFunction = Callable[[Floats, Floats], tuple[float, float]]
"""A range method of the caller: from the histogram of a tensor, counts [n] and edges [n + 1], to (low, high)."""

_GIVEN: dict[str, RangeFunction] = {}


def named_function(function: RangeFunction) -> str:
    """Keep a range method of the caller for this process, and return the name by which recipes call it."""
    made = function if hasattr(function, "__qualname__") else type(function)
    name = first = f"{made.__module__}:{made.__qualname__}"
    count = 1
    while _GIVEN.setdefault(name, function) is not function:  # another function of this name, such as a lambda
        count += 1
        name = f"{first}#{count}"
    return name


def known_methods() -> tuple[str, ...]:
    """Names of the range methods, and of those that the caller gave in this process."""
    return (*METHODS, *_GIVEN)


def _given(stats: TensorStats, moments: Moments, method: str) -> tuple[float, float]:
    """The range that a function of the caller chooses. Raises CalibrationError where it fails or gives no range."""
    hint = "it is given the counts and the edges of a histogram, and returns (low, high)"
    with users_code(f"range method {method}", hint):
        low, high = map(float, _GIVEN[method](moments.counts.copy(), moments.edges.copy()))
    if not low <= high or not math.isfinite(low) or not math.isfinite(high):
        raise CalibrationError(f"range method {method} returned ({low:g}, {high:g})", hint)
    return low, high
