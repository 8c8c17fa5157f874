"""Weights moved towards outputs that are wanted, as far as samples they were not moved on agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows of inputs x [G, N, K] and wanted outputs y [G, N, O].

    xx: x^T x, [G, K, K]; yx: y^T x, [G, O, K].
    """

    xx: Floats
    yx: Floats

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.xx + other.xx, self.yx + other.yx)

    def damped(self, strength: float) -> Floats:
        """xx + lam I; lam is `strength` times the mean second moment of a group, and grows with the rows."""
        columns = np.arange(self.xx.shape[1])
        found = self.xx.astype(np.float64)
        mean = found[:, columns, columns].mean(axis=1)
        least = max(float(mean.max()) * 1e-6, float(np.finfo(np.float32).tiny))  # of a group that reads only zeros
        found[:, columns, columns] += np.maximum(strength * mean, least)[:, None]
        return found


def ridge(moments: Moments, weight: Floats, strength: float) -> Floats:
    """W* = (Y X^T + lam W0) (X X^T + lam I)^-1, lam as in `Moments.damped`. [G, O, K].

    Computed as the step from W0: (Y X^T - W0 X X^T) (X X^T + lam I)^-1.
    """
    missing = moments.yx - weight.astype(np.float64) @ moments.xx
    return np.asarray(weight + np.linalg.solve(moments.damped(strength), missing.transpose(0, 2, 1)).transpose(0, 2, 1))


def change(moments: Moments, weight: Floats, other: Floats) -> float:
    """How much larger the squared error of `other` is than that of `weight`: |Y - other X|^2 - |Y - weight X|^2."""
    step = other - weight
    quadratic = np.einsum("gok,gok->", step @ moments.xx, step)
    return float(quadratic - 2 * np.einsum("gok,gok->", step, moments.yx - weight @ moments.xx))
