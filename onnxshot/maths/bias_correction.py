"""Correct the bias of a quantized layer, so that the mean of its outputs is that of the float layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 3  # fixed-point iterations
_STEP = 0.01  # finite difference, as a share of the outputs' standard deviation, that measures d mean / d bias
_LEAST_SLOPE = 0.1  # lower bound of that derivative: where the activation clips nearly everything, steps would explode


def corrected_bias(
    wanted: NDArray[np.floating],
    got: NDArray[np.floating],
    bias: NDArray[np.floating],
    activation: Callable[[NDArray[Any]], NDArray[Any]],
    starts: NDArray[np.int64],
) -> Floats:
    """A bias [O] for which the mean of what the layer gives is the float layer's, behind its activation.

    Empirical bias correction: Nagel et al. 2019, section 4.2, with the mean taken after the activation: noise before
    it is rectified, and it is the mean behind it that the next layer sees. Of a mean error that differs from sample to
    sample, only so much is corrected as is no accident of the samples: James and Stein 1961, with the positive part.

    wanted [N, O]: the float layer's outputs before the activation. got [N, O]: the quantized layer's, without bias.
    activation: applied value by value. starts [S]: the row that each sample's rows begin with.
    """
    target = activation(wanted)
    counts = np.diff(starts, append=len(wanted))[:, None]
    found = bias.astype(np.float64)
    step = np.float32(_STEP * max(float(wanted.std()), 1e-6))
    for _ in range(_STEPS):
        raw = got + found.astype(np.float32)
        given = activation(raw)
        errors = np.add.reduceat(target - given, starts, axis=0) / counts
        mean = errors.mean(axis=0)
        accident = errors.var(axis=0) / max(len(starts) - 1, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(mean != 0.0, np.maximum(1.0 - accident / mean**2, 0.0), 0.0)
        slope = (activation(raw + step) - given).mean(axis=0) / step
        found += share * mean / np.maximum(slope, _LEAST_SLOPE)
    return found
