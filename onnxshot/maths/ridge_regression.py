"""Weights moved towards outputs that are wanted, as far as samples they were not moved on agree: ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_FLOOR = 0.01  # of the mean second moment: inputs that are hardly ever other than zero are damped as well


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows of inputs x [G, N, K] and wanted outputs y [G, N, O].

    xx: x^T x, [G, K, K]; yx: y^T x, [G, O, K].
    """

    xx: Floats
    yx: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Moments:
        """Of rows x [G, N, K] and y [G, N, O]."""
        return cls(x.transpose(0, 2, 1) @ x, y.transpose(0, 2, 1) @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.xx + other.xx, self.yx + other.yx)

    def damped(self, strength: float) -> Floats:
        """xx + strength (diag(xx) + 0.01 mean I): inputs count the less alike, the stronger; it grows with the rows.

        Each input by its own second moment, not all by their mean: where a few are large, as in transformers, that mean
        would drown the others. What is left of a very strong one are Wanda's scores (Sun et al. 2024).
        """
        columns = np.arange(self.xx.shape[1])
        found = self.xx.astype(np.float64)
        diagonal = found[:, columns, columns]
        mean = diagonal.mean(axis=1, keepdims=True)
        least = max(float(mean.max()) * 1e-6, float(np.finfo(np.float32).tiny))  # of a group that reads only zeros
        found[:, columns, columns] += np.maximum(strength * (diagonal + _FLOOR * mean), least)
        return found


def ridge(moments: Moments, weight: Floats, strength: float) -> Floats:
    """W* = (Y X^T + W0 L) (X X^T + L)^-1, with L what `Moments.damped` adds to X X^T. [G, O, K].

    Generalized ridge regression about W0 (Hoerl and Kennard 1970, eq. 2.1 where L is k I and W0 is 0).

    Computed as the step from W0: (Y X^T - W0 X X^T) (X X^T + L)^-1.
    """
    missing = moments.yx - weight.astype(np.float64) @ moments.xx
    return np.asarray(weight + np.linalg.solve(moments.damped(strength), missing.transpose(0, 2, 1)).transpose(0, 2, 1))


def change(moments: Moments, weight: Floats, other: Floats) -> float:
    """How much larger the squared error of `other` is than that of `weight`: |Y - other X|^2 - |Y - weight X|^2."""
    step = other - weight
    quadratic = np.einsum("gok,gok->", step @ moments.xx, step)
    return float(quadratic - 2 * np.einsum("gok,gok->", step, moments.yx - weight @ moments.xx))


def best_strength(
    learn: Moments,
    check: Moments,
    weight: Floats,
    strengths: Sequence[float],
    fit: Callable[[Moments, Floats, float], Floats] = ridge,
) -> float | None:
    """The strength whose fit, learned from some rows, lowers the error of others most; None where none lowers it."""
    gains = {strength: change(check, weight, fit(learn, weight, strength)) for strength in strengths}
    best = min(gains, key=lambda strength: gains[strength])
    return best if gains[best] < 0 else None
