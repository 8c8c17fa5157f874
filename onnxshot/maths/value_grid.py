"""Find the grid that values lie on: pictures of 8 bits, normalized, take 256 values per channel and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TIGHT = 1e-5  # of the largest value: two that are closer are one, but for the rounding of float32
_OFF = 0.02  # of a step: how far a value may lie beside the grid
_LEVELS = 255  # steps of an 8-bit grid
_FEWEST = 16  # values: fewer lie on a grid by accident


@dataclass(frozen=True, slots=True)
class Grid:
    """Values offset + step * k, for k of 0 to 255."""

    step: float
    offset: float


def find_grid(values: NDArray[np.floating]) -> Grid | None:
    """The coarsest grid of 256 values that holds all these; None where there is none.

    Where fewer than 256 steps were seen, the rest is left on both sides alike.
    """
    seen = np.unique(values.astype(np.float64))
    if not len(seen) or not np.isfinite(seen).all():
        return None
    apart = np.diff(seen) > _TIGHT * max(float(np.abs(seen).max()), np.finfo(np.float64).tiny)
    seen = seen[np.concatenate([[True], apart])]
    if len(seen) < _FEWEST:
        return None
    step = float(np.diff(seen).min())
    for _ in range(2):  # the least difference tells the step but roughly: fitted to all, it is exact
        codes = np.rint((seen - seen[0]) / step)
        step = float(codes @ (seen - seen[0]) / (codes @ codes))
    codes = np.rint((seen - seen[0]) / step)
    if codes[-1] > _LEVELS or np.abs((seen - seen[0]) / step - codes).max() > _OFF:
        return None
    free = (_LEVELS - int(codes[-1])) // 2
    return Grid(step, float(seen[0]) - free * step)


def least_db(samples: Sequence[NDArray[np.floating]], step: float) -> float:
    """SQNR in dB that one step for all channels leaves the channel of least variance [N, C, ...]; silent ones aside.

    The error of rounding is even between -step/2 and step/2: its variance is step**2 / 12.
    """
    flat = np.concatenate([np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in samples], axis=1)
    variances = flat.var(axis=1, dtype=np.float64)
    heard = variances[variances > 0]
    return float(10.0 * np.log10(heard.min() * 12.0 / step**2)) if heard.size else np.inf
