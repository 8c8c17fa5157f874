"""Share out zeros over layers: by one rule for all of them, or so that the sum of what they cost is least."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """What a layer costs at some sparsities, both rising from 0; size: its weights; least: zeros it has in any case."""

    size: int
    sparsities: tuple[float, ...]
    costs: tuple[float, ...]
    least: int = 0

    def at(self, shares: NDArray[np.floating]) -> NDArray[np.float64]:
        """The cost at other sparsities: cost is taken to be a power of the sparsity between two that were measured.

        Above the last that was measured, the last power goes on.
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
    """How many zeros each layer gets so that they are `count` together, and the sum of the costs is least.

    Greedy on the lower convex hull of every curve, which is what a Lagrange multiplier finds (Everett 1963): the next
    zeros go where they cost least each. most: no layer gets a larger share than this, unless all have it.
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
    for i in sorted(range(len(curves)), key=lambda i: -curves[i].size):  # all have `most`: the rest goes anywhere
        taken = min(max(left, 0), curves[i].size - found[i])
        found[i] += taken
        left -= taken
    return found


def _slope(hull: Sequence[tuple[int, float]], step: int) -> float:
    (a, low), (b, high) = hull[step - 1], hull[step]
    return (high - low) / (b - a)


def _hull(counts: NDArray[np.int64], costs: NDArray[np.float64]) -> list[tuple[int, float]]:
    """The lower convex hull of the points, from the left (Andrew 1979)."""
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
    """How many zeros each layer gets where densities are as (sum of dimensions) / (product of dimensions).

    Erdos-Renyi-Kernel: Evci et al. 2020 (RigL), section 3, (1). shapes: [O, I, *k] of every layer. Layers whose
    density would be above 1 are left dense, and the others make up for it.
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
    """Whole numbers of zeros for these shares that are `count` together: what rounding misses goes where it is least.

    Zeros that layers have in any case (`least`) count, and others are taken back for them in the same proportion.
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
