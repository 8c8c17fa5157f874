"""Least squares with a penalty on how far weights move, the penalty chosen on rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean second moment of the inputs; what is best for rows left out is taken, or nothing is changed."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of rows x [N, G, K] and residuals r [N, G, O] about their means: x'x [G, K, K], x'r [G, K, O], over N."""

    xx: Floats
    xr: Floats


def sums(x: NDArray[np.floating], r: NDArray[np.floating], mean_x: Floats, mean_r: Floats) -> Sums:
    """Second moments of x [N, G, K] and r [N, G, O] about means [G, K] and [G, O]."""
    groups_first = (x - mean_x.astype(x.dtype)).transpose(1, 2, 0)  # [G, K, N]
    residual = (r - mean_r.astype(r.dtype)).transpose(1, 0, 2)
    xx = (groups_first @ groups_first.transpose(0, 2, 1)).astype(np.float64) / len(x)
    return Sums(xx, (groups_first @ residual).astype(np.float64) / len(x))


def joined(one: Sums, other: Sums, share: float) -> Sums:
    """Of the rows of both; share: of them that are the other's."""
    return Sums((1 - share) * one.xx + share * other.xx, (1 - share) * one.xr + share * other.xr)


def ridge(given: Sums, penalty: float) -> Floats:
    """The d [G, K, O] of least E|r - d'x|**2 + penalty * mean moment * |d|**2: Hoerl and Kennard 1970, eq. 2.1."""
    columns = np.arange(given.xx.shape[1])
    damped = given.xx.copy()
    mean = damped[:, columns, columns].mean(axis=1)
    damped[:, columns, columns] += np.maximum(penalty * mean, np.finfo(np.float32).tiny)[:, None]
    change: Floats = np.linalg.solve(damped, given.xr).astype(np.float64, copy=False)
    return change


def best_penalty(learn: Sums, check: Sums, penalties: Sequence[float] = PENALTIES) -> float | None:
    """The penalty whose change, learned from some rows, lowers the error of others most; None where none lowers it."""
    best, least = None, 0.0
    for penalty in penalties:
        change = ridge(learn, penalty)
        # E|r - d'x|**2 = E|r|**2 - 2 <d, x'r> + <d, x'x d>
        gain = float((change * (check.xx @ change)).sum() - 2 * (change * check.xr).sum())
        if gain < least:
            best, least = penalty, gain
    return best
