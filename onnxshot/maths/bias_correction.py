"""Correct the bias of a quantized layer, so that the mean of its outputs is that of the float layer.

Who applies it: `recovery/layer_reconstruction.py` to quantized models, `pruning/layerwise_pruning.py` and
`channels/ridge_reconstruction.py` to pruned ones.
"""

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
    """Return the bias with which the mean output of the quantized layer equals that of the float layer.

    This is empirical bias correction. The means are compared after the activation function, because that is what the
    next layer reads, and because an activation turns zero-mean noise into a shift. Where the mean error differs from
    sample to sample, the correction is shrunk by the James-Stein factor, max(0, 1 - v / mean**2), where v is the
    variance of the mean.

    Args:
        wanted: outputs of the float layer before the activation [N, O]: N rows of O channels.
        got: outputs of the quantized layer before the activation, without its bias [N, O].
        bias: the bias to start from [O].
        activation: the function behind the layer, applied elementwise; one that returns its argument means none.
        starts: the first row of each of the S samples, ascending [S].

    Returns:
        The corrected bias, float64 [O].

    Source: Nagel et al. 2019 (Data-Free Quantization), section 4.2; James and Stein 1961, positive-part estimator.

    Example:
        >>> wanted = np.array([[1.0], [2.0], [3.0]], np.float32)
        >>> corrected_bias(wanted, wanted - 0.5, np.zeros(1), lambda x: x, np.array([0, 1, 2])).round(3)
        array([0.5])
    """
    target = activation(wanted)
    counts = np.diff(starts, append=len(wanted))[:, None]
    found = bias.astype(np.float64)
    if target is wanted:  # no activation: the errors of each sample follow from those without a bias
        missing = np.add.reduceat(wanted - got, starts, axis=0) / counts
        for _ in range(_STEPS):
            found += shrunk_mean(missing - found)
        return found
    step = np.float32(_STEP * max(float(wanted.std()), 1e-6))
    for _ in range(_STEPS):
        raw = got + found.astype(np.float32)
        given = activation(raw)
        mean = shrunk_mean(np.add.reduceat(target - given, starts, axis=0) / counts)
        slope = (activation(raw + step) - given).mean(axis=0) / step
        found += mean / np.maximum(slope, _LEAST_SLOPE)
    return found


def shrunk_mean(errors: NDArray[np.floating]) -> Floats:
    """Return the mean [O] of the errors of samples [S, O], shrunk where it may be an accident (James and Stein)."""
    mean = errors.mean(axis=0)
    accident = errors.var(axis=0) / max(len(errors) - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(mean != 0.0, np.maximum(1.0 - accident / mean**2, 0.0), 0.0)
    shrunk: Floats = share * mean
    return shrunk
