"""Move outliers of an activation into the weight it is multiplied with, where a scale per channel takes them.

SmoothQuant (Xiao et al. 2022): x @ W = (x / s) @ (s * W), eq. 3, with one s per input channel. How much is moved, alpha
of its eq. 4, is searched layer by layer by the error of the products, as AWQ (Lin et al. 2023) does in its eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import (
    PerChannel,
    QuantScheme,
    dequantize,
    params_from_range,
    quantize,
    weight_params,
)

STRENGTH = 0.8
"""alpha of eq. 4. At 0.8 a MiniLM encoder gains 5 dB; at the paper's 0.5, meant for larger models, it loses 3."""
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What alpha is chosen from, where it is searched."""
_LEAST = 0.01  # of the mean: a channel that calibration found silent must not blow up when it speaks
_QUIET = 0.1  # of the typical row's energy: what a row of nearly nothing comes to is no error to speak of
_MOST = 64.0  # times the typical factor: the weight has 8 bits too


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of an activation, and what is known of all of its rows.

    Attributes:
        values: float32 [M, K].
        sample: which sample each row is of, int [M].
        low, high: extremes of every channel in every sample, over all of its rows: float [S, K].
    """

    values: NDArray[np.float32]
    sample: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def absmax(self) -> NDArray[np.float32]:
        """Largest absolute value of every channel [K]."""
        found: NDArray[np.float32] = np.maximum(np.abs(self.low), np.abs(self.high)).max(axis=0)
        return found

    def widened(self, absmax: NDArray[np.float32]) -> Rows:
        """The same rows, where channels are known to reach these absolute values [K] in other samples.

        The side on which a channel goes further here is taken to be the one that it goes so far on.
        """
        up = self.high.max(axis=0) >= -self.low.min(axis=0)
        low = np.where(up, self.low, np.minimum(self.low, -absmax))
        return replace(self, low=low, high=np.where(up, np.maximum(self.high, absmax), self.high))


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Factors [K] that a tensor is divided by, the strength they are of, and how the products come out, in dB.

    db, plain_db: SQNR of the products with the factors, and without any.
    """

    factors: NDArray[np.float32]
    strength: float
    db: float
    plain_db: float

    @property
    def noise_removed(self) -> float:
        """Share of the products' energy that is noise without the factors, and is none with them."""
        return float(10.0 ** (-self.plain_db / 10.0) - 10.0 ** (-self.db / 10.0))


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


def search_smoothing(
    rows: Rows,
    tables: Sequence[NDArray[np.float32]],
    activation: QuantScheme,
    weights: Sequence[QuantScheme],
    *,
    per_sample: bool = False,
    strengths: Sequence[float] = STRENGTHS,
) -> Smoothing:
    """The strength with the least error of all products together; strength 0 has factors of 1.

    The error is the mean over rows i of sum(||Q(x_i / s) Q(s W) - x_i W||**2) / sum(||x_i W||**2), both over the W:
    AWQ eq. 4 and 5 with the factors of SmoothQuant eq. 4, and the activation quantized too. It is taken row by row
    because what normalizes the products makes a row of small values count as much as one of large values.

    Args:
        rows: x, [M, K].
        tables: the weights W that x is multiplied with, [K, N] each.
        activation: scheme of x, one scale for all of it.
        weights: scheme of each table, axes as in [K, N].
        per_sample: whether x has a range for each sample (dynamic), else one for all (static).
        strengths: what to choose from, besides 0.
    """
    w_absmax = np.max([np.abs(table).max(axis=1) for table in tables], axis=0)
    wanted = [rows.values @ table for table in tables]
    energy = np.sum([np.square(y, dtype=np.float64).sum(axis=1) for y in wanted], axis=0)
    energy += max(_QUIET * float(np.median(energy)), 1e-30)

    def db(factors: NDArray[np.float32]) -> float:
        x = _quantized(rows, factors, activation, per_sample)
        noise = np.zeros(len(x))
        for table, scheme, y in zip(tables, weights, wanted, strict=True):
            scaled = table * factors[:, None]
            params = weight_params(scaled, scheme)
            found = x @ dequantize(quantize(scaled, params), params)
            noise += np.square(found - y, dtype=np.float64).sum(axis=1)
        return float(-10.0 * np.log10(max(float(np.mean(noise / energy)), 1e-30)))

    ones = np.ones(rows.values.shape[1], np.float32)
    plain = db(ones)
    best = Smoothing(ones, 0.0, plain, plain)
    for strength in strengths:
        factors = smoothing_factors(rows.absmax, w_absmax, strength)
        found = db(factors)
        if found > best.db:
            best = Smoothing(factors, strength, found, plain)
    return best


def _quantized(rows: Rows, factors: NDArray[np.float32], scheme: QuantScheme, per_sample: bool) -> NDArray[np.float32]:
    """What is left of x / s [M, K] once it was quantized with the range of each sample, or of all."""
    low, high = (rows.low / factors).min(axis=1), (rows.high / factors).max(axis=1)
    if per_sample:
        low, high, scheme = low[rows.sample], high[rows.sample], replace(scheme, granularity=PerChannel(0))
    else:
        low, high = low.min(), high.max()
    params = params_from_range(low, high, scheme)
    return dequantize(quantize(rows.values / factors, params), params)
