"""Find the grid that values lie on. Normalized 8-bit images, for example, have at most 256 values per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TIGHT = 1e-5  # of the largest value: closer values differ only by float32 rounding
_OFF = 0.02  # of a step: largest distance of a value from the grid
_LEVELS = 255  # steps of an 8-bit grid
_FEWEST = 16  # distinct values: fewer lie on a grid by chance


@dataclass(frozen=True, slots=True)
class Grid:
    """The values offset + step * k for k = 0 to 255."""

    step: float
    offset: float


def find_grid(values: NDArray[np.floating]) -> Grid | None:
    """Find the coarsest grid of 256 levels that all values lie on.

    Args:
        values: float, of any shape.

    Returns:
        The grid, or None where there is none, or where fewer than 16 distinct values were given. Where the values span
        fewer than 256 levels, the unused levels are divided evenly between both ends.

    Example:
        >>> find_grid(np.arange(256) / 255 - 0.5)
        Grid(step=0.00392156862745098, offset=-0.5)
    """
    seen = np.unique(values.astype(np.float64))
    if not len(seen) or not np.isfinite(seen).all():
        return None
    apart = np.diff(seen) > _TIGHT * max(float(np.abs(seen).max()), np.finfo(np.float64).tiny)
    seen = seen[np.concatenate([[True], apart])]
    if len(seen) < _FEWEST:
        return None
    step = float(np.diff(seen).min())
    for _ in range(2):  # the smallest difference is only roughly the step: refine it by least squares over all values
        codes = np.rint((seen - seen[0]) / step)
        step = float(codes @ (seen - seen[0]) / (codes @ codes))
    codes = np.rint((seen - seen[0]) / step)
    if codes[-1] > _LEVELS or np.abs((seen - seen[0]) / step - codes).max() > _OFF:
        return None
    free = (_LEVELS - int(codes[-1])) // 2
    return Grid(step, float(seen[0]) - free * step)


def least_db(samples: Sequence[NDArray[np.floating]], step: float) -> float:
    """Return the SQNR of the channel with the least variance, where all channels are rounded to multiples of one step.

    Rounding errors are uniform in -step/2..step/2, so their variance is step**2 / 12. Constant channels are ignored.

    Args:
        samples: arrays [N, C, ...].
        step: the scale, in units of the samples.

    Returns:
        SQNR in dB; infinity where all channels are constant.

    Example:
        >>> round(least_db([np.array([[[1.0, -1.0]]])], step=0.1), 1)
        30.8
    """
    flat = np.concatenate([np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in samples], axis=1)
    variances = flat.var(axis=1, dtype=np.float64)
    heard = variances[variances > 0]
    return float(10.0 * np.log10(heard.min() * 12.0 / step**2)) if heard.size else np.inf
