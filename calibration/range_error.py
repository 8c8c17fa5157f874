"""Expected quantization error of a range, computed from a tensor's histogram.

The mean squared error of a range is a sum over three groups of values:

    inside the range     step**2 / 12 each: rounding noise that is uniform within a step (Widrow)
    rounded to zero      x**2 each, for |x| < step / 2; exact zeros cost nothing
    outside the range    (x - nearest end)**2 each: clipping error

Cumulative sums over the histogram (`Moments`) give each group in O(1) per candidate range. The ends of a range are the
real values of the smallest and the largest code, after the zero point has been rounded.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.stats import Histogram, TensorStats
from onnxshot.maths.affine import QuantScheme, params_from_range
from onnxshot.maths.sqnr import CAP_DB

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Cumulative sums of 1, x and x**2 over a histogram.

    Attributes:
        first: index of the first bin.
        counts: values per bin [n], exact zeros included.
        edges: bin edges [n + 1], clipped to the exact extremes of the tensor.
        s0, s1, s2: sums of 1, x and x**2 up to each edge [n + 1], exact zeros excluded.
        total: number of values, exact zeros included.
        width: width of a bin.
    """

    first: int
    counts: Floats
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


def moments_of(stats: TensorStats) -> Moments:
    """Cumulative sums over the histogram of a tensor."""
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
    return Moments(first, everything, edges, s0, s1, s2, total, stats.histogram.width)


def distribution(stats: TensorStats) -> tuple[int, Floats]:
    """Distribution of all values of a tensor, at the bin width of its histogram.

    The histogram counts a subsample. It shows how most values are distributed, but may miss rare ones. The histograms
    of the row extremes (`TensorStats.bottoms` and `tops`) show the rare ones: at least as many values lie above t as
    rows have their maximum above t. Except by chance, neither count is too high, so the larger one is used, from each
    end of the range inwards to the median of the subsample. The result equals the histogram where the subsample holds
    every value.

    Args:
        stats: statistics of a tensor.

    Returns:
        The index of the first bin, and the counts per bin, float64 [n], which sum to the size of the subsample.
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
    """Counts of a histogram over bins first..last, padded with zeros."""
    counts = np.zeros(last - first + 1)
    counts[h.first - first : h.first - first + len(h.counts)] = h.counts
    return counts


def errors(moments: Moments, low: Floats, high: Floats, scheme: QuantScheme) -> tuple[Floats, Floats, Floats]:
    """Expected squared error of n candidate ranges.

    Args:
        moments: cumulative sums over the tensor's histogram.
        low: lower ends of the ranges, float64 [n].
        high: upper ends of the ranges, float64 [n].
        scheme: type and symmetry of the codes.

    Returns:
        Three arrays [n], each a mean over all values: the rounding error of values inside the range, the clipping error
        of values outside, and the energy (x**2) of values outside.
    """
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
        # A step of a bin or two is too narrow for the histogram to show a shape: assume uniform values there too.
        cell = np.where(step > 2.0 * moments.width, cell_energy, cell_count * noise)
        inside = cell + np.maximum(n[1] - n[0] - cell_count, 0.0) * noise
    return inside / moments.total, outside / moments.total, tail / moments.total


def _float_noise(moments: Moments, step: Floats, bottom: Floats, top: Floats, scheme: QuantScheme) -> Floats:
    """Rounding noise of float8 codes, summed over the bins inside; spacing grows with |x| (E4M3FN, OCP OFP8 1.0)."""
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


def error_of(moments: Moments, low: float, high: float, scheme: QuantScheme) -> tuple[float, float, float]:
    """`errors` of a single range."""
    inside, outside, tail = errors(moments, np.asarray([low]), np.asarray([high]), scheme)
    return float(inside[0]), float(outside[0]), float(tail[0])


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers in dB, clipped to -CAP_DB..CAP_DB."""
    if noise <= 0.0:
        return CAP_DB
    if signal <= 0.0:
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10.0 * (math.log10(signal) - math.log10(noise))))
