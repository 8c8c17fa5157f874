"""Ridge regression of a layer's weight towards wanted outputs, with a strength chosen on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_FLOOR = 0.01  # of the mean second moment, added for each input: inputs that are nearly always zero are damped too


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of products over rows of inputs x and wanted outputs y. The moments of two sets of rows can be added.

    Attributes:
        xx: x^T x [G, K, K]: G groups of K inputs.
        yx: y^T x [G, O, K]: O outputs per group.
    """

    xx: Floats
    yx: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Moments:
        """Compute the moments of N rows of inputs x [G, N, K] and outputs y [G, N, O]."""
        return cls(x.transpose(0, 2, 1) @ x, y.transpose(0, 2, 1) @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.xx + other.xx, self.yx + other.yx)

    def damped(self, strength: float) -> Floats:
        """Return xx + strength * (diag(xx) + 0.01 * mean(diag(xx)) * I), float64 [G, K, K].

        Each input is damped by its own second moment, not by the mean of all: in transformers, a few large inputs
        would dominate that mean. With very strong damping, Optimal Brain Surgeon scores become those of Wanda (Sun et
        al. 2024).
        """
        columns = np.arange(self.xx.shape[1])
        found = self.xx.astype(np.float64)
        found[:, columns, columns] += self.added(strength)
        return found

    def added(self, strength: float) -> NDArray[np.float64]:
        """Return what `damped` adds to the diagonal [G, K]."""
        diagonal = np.einsum("gkk->gk", self.xx).astype(np.float64)
        mean = diagonal.mean(axis=1, keepdims=True)
        least = max(float(mean.max()) * 1e-6, float(np.finfo(np.float32).tiny))  # for groups that read only zeros
        return np.asarray(np.maximum(strength * (diagonal + _FLOOR * mean), least))

    def of_outputs(self, picked: slice) -> Moments:
        """Return the moments of some outputs alone."""
        return Moments(self.xx, self.yx[:, picked])


def ridge(moments: Moments, weight: Floats, strength: float) -> Floats:
    """Fit a weight to wanted outputs by generalized ridge regression about the given weight.

    W* = (Y X^T + W0 L) (X X^T + L)^-1, where L is what `Moments.damped` adds to X X^T. It is computed as a step from
    W0: (Y X^T - W0 X X^T) (X X^T + L)^-1.

    Args:
        moments: sums over the rows to learn from.
        weight: W0 [G, O, K].
        strength: of the damping; the larger, the closer the result is to W0.

    Returns:
        W*, float64 [G, O, K].

    Source: Hoerl and Kennard 1970, eq. 2.1, which is the case of L = k I and W0 = 0.

    Example:
        >>> rows = Moments.of(np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0))
        >>> ridge(rows, np.ones((1, 1, 1)), 1e-6).round(3).tolist()
        [[[2.0]]]
    """
    missing = moments.yx - weight.astype(np.float64) @ moments.xx
    return np.asarray(weight + np.linalg.solve(moments.damped(strength), missing.transpose(0, 2, 1)).transpose(0, 2, 1))


def change(moments: Moments, weight: Floats, other: Floats) -> float:
    """Return the change of the squared error from `weight` to `other`: |Y - other X|^2 - |Y - weight X|^2.

    Args:
        moments: sums over the rows to compare on.
        weight: [G, O, K].
        other: [G, O, K].

    Example:
        >>> rows = Moments.of(np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0))
        >>> change(rows, np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0))
        -4.0
    """
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
    """Choose the strength whose fit, learned from some rows, lowers the error on held-out rows most.

    Args:
        learn: sums over the rows to learn from.
        check: sums over the held-out rows.
        weight: the weight to start from [G, O, K].
        strengths: the strengths to choose from.
        fit: fits a weight, given (moments, weight, strength).

    Returns:
        The strength, or None where no fit lowers the error.

    Example:
        >>> rows = Moments.of(np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0))
        >>> best_strength(rows, rows, np.ones((1, 1, 1)), [0.1, 1.0])
        0.1
    """
    gains = {strength: change(check, weight, fit(learn, weight, strength)) for strength in strengths}
    best = min(gains, key=lambda strength: gains[strength])
    return best if gains[best] < 0 else None
