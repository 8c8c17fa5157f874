"""Divide a number of zeros among layers: by one rule for all layers, or so that the sum of their costs is least.

`pruning/sparsity_per_layer.py` chooses between the rules by the scope that was asked for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """The measured cost of a layer at some sparsities.

    Attributes:
        size: number of weights.
        sparsities: shares of zeros that were measured, ascending from 0.
        costs: the cost at each of them, ascending.
        least: number of zeros that the layer has already and keeps.
    """

    size: int
    sparsities: tuple[float, ...]
    costs: tuple[float, ...]
    least: int = 0

    def at(self, shares: NDArray[np.floating]) -> NDArray[np.float64]:
        """Interpolate the cost at other sparsities, linearly on logarithmic axes.

        Beyond the measured ends, the slope of the nearest segment continues; below the first point it is at least 1.

        Args:
            shares: sparsities, 0 to 1.

        Returns:
            The costs, float64, of the shape of `shares`.

        Example:
            >>> Curve(100, (0.0, 0.4, 0.8), (0.0, 1.0, 4.0)).at(np.array([0.2, 0.4])).round(2).tolist()
            [0.25, 1.0]
        """
        known = [(s, c) for s, c in zip(self.sparsities, self.costs, strict=True) if s > 0 and c > 0]
        if not known:
            return np.zeros(len(shares))
        x, y = np.log([s for s, _ in known]), np.log([c for _, c in known])
        wanted = np.log(np.maximum(shares, 1e-9))
        slope = np.diff(y) / np.diff(x) if len(x) > 1 else np.array([2.0])
        found = np.interp(wanted, x, y)
        found = np.where(wanted < x[0], y[0] + (wanted - x[0]) * max(float(slope[0]), 1.0), found)
        found = np.where(wanted > x[-1], y[-1] + (wanted - x[-1]) * float(slope[-1]), found)
        return np.where(shares > 0, np.exp(found), 0.0)


def cheapest_allocation(curves: Sequence[Curve], count: int, most: float = 0.98, steps: int = 200) -> list[int]:
    """Divide `count` zeros among layers so that the sum of the costs is least.

    The next zeros go to the layer where they cost least per zero, along the lower convex hull of every curve. That is
    the solution that a Lagrange multiplier finds (Everett 1963).

    Args:
        curves: one curve per layer.
        count: number of zeros of all layers together.
        most: largest sparsity of a layer. It is exceeded only when every layer has reached it.
        steps: points at which each curve is evaluated.

    Returns:
        The number of zeros of each layer.

    Example:
        >>> cheap, dear = Curve(100, (0.0, 0.5), (0.0, 1.0)), Curve(100, (0.0, 0.5), (0.0, 9.0))
        >>> cheapest_allocation([cheap, dear], 100)
        [90, 10]
    """
    found = [min(curve.least, curve.size) for curve in curves]
    queue: list[tuple[float, int, int]] = []
    hulls = []
    for i, curve in enumerate(curves):
        grid = np.linspace(0, most, steps + 1)
        counts = np.floor(grid * curve.size).astype(np.int64)
        hull = _hull(counts, curve.at(counts / max(curve.size, 1)))
        hulls.append(hull)
        if len(hull) > 1:
            heapq.heappush(queue, (_slope(hull, 1), i, 1))
    left = count - sum(found)
    while queue and left > 0:
        _, i, step = heapq.heappop(queue)
        taken = max(hulls[i][step][0] - max(found[i], hulls[i][step - 1][0]), 0)
        taken = min(taken, left, max(hulls[i][step][0] - found[i], 0))
        found[i] += taken
        left -= taken
        if step + 1 < len(hulls[i]):
            heapq.heappush(queue, (_slope(hulls[i], step + 1), i, step + 1))
    for i in sorted(range(len(curves)), key=lambda i: -curves[i].size):  # all are at `most`: the largest take the rest
        taken = min(max(left, 0), curves[i].size - found[i])
        found[i] += taken
        left -= taken
    return found


def _slope(hull: Sequence[tuple[int, float]], step: int) -> float:
    (a, low), (b, high) = hull[step - 1], hull[step]
    return (high - low) / (b - a)


def _hull(counts: NDArray[np.int64], costs: NDArray[np.float64]) -> list[tuple[int, float]]:
    """The lower convex hull of the points, from left to right (Andrew 1979)."""
    hull: list[tuple[int, float]] = []
    for x, y in zip(counts.tolist(), costs.tolist(), strict=True):
        if hull and x == hull[-1][0]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull


def erdos_renyi(shapes: Sequence[tuple[int, ...]], count: int, least: Sequence[int] = ()) -> list[int]:
    """Divide `count` zeros among layers by the Erdos-Renyi-Kernel rule.

    The density of a layer is proportional to (sum of its dimensions) / (product of its dimensions). Layers whose
    density would exceed 1 stay dense, and the others take their zeros.

    Args:
        shapes: weight shapes [O, I, *kernel].
        count: number of zeros of all layers together.
        least: zeros that each layer has already; none if empty.

    Returns:
        The number of zeros of each layer.

    Source: Evci et al. 2020 (RigL), section 3, (1).

    Example:
        >>> erdos_renyi([(10, 10), (100, 100)], 8000)
        [0, 8000]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / max(size, 1) for shape, size in zip(shapes, sizes, strict=True)]
    kept_in_all = sum(sizes) - count
    dense: set[int] = set()
    while True:
        left = kept_in_all - sum(sizes[i] for i in dense)
        weighed = sum(raw[i] * sizes[i] for i in range(len(sizes)) if i not in dense)
        factor = max(left, 0) / weighed if weighed else 0.0
        above = {i for i in range(len(sizes)) if i not in dense and factor * raw[i] > 1}
        if not above:
            break
        dense |= above
    shares = [0.0 if i in dense else 1 - factor * raw[i] for i in range(len(sizes))]
    return exact_counts(sizes, shares, count, least)


def exact_counts(sizes: Sequence[int], shares: Sequence[float], count: int, least: Sequence[int] = ()) -> list[int]:
    """Turn shares of zeros into whole numbers whose sum is `count`.

    The remainder of rounding down goes to the layers with the largest fractions. Zeros that layers have already count,
    and the other zeros are reduced in proportion.

    Args:
        sizes: number of weights of each layer.
        shares: wanted sparsity of each layer, 0 to 1.
        count: number of zeros of all layers together.
        least: zeros that each layer has already; none if empty.

    Returns:
        The number of zeros of each layer.

    Example:
        >>> exact_counts([3, 3], [0.5, 0.5], 3)
        [2, 1]
    """
    floor = list(least) or [0] * len(sizes)
    free = max(count - sum(floor), 0)
    extra = [max(share * size - low, 0.0) for share, size, low in zip(shares, sizes, floor, strict=True)]
    factor = free / sum(extra) if sum(extra) else 0.0
    found = [min(low + int(factor * more), size) for low, more, size in zip(floor, extra, sizes, strict=True)]
    rest = sorted(range(len(sizes)), key=lambda i: -(factor * extra[i] % 1))
    while sum(found) < count:
        before = sum(found)
        for i in rest:
            if sum(found) < count and found[i] < sizes[i] and (extra[i] or before == sum(found)):
                found[i] += 1
        if sum(found) == before:
            break
    return found
