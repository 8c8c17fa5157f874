"""SmoothQuant: move outliers of an activation into the weight that it is multiplied with.

SmoothQuant (Xiao et al. 2022), eq. 3: x @ W = (x / s) @ (s * W), with one factor s per input channel. The strength
(alpha in eq. 4) is searched layer by layer, by the error of the products, as in AWQ (Lin et al. 2023), eq. 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
"""Default strength, alpha of eq. 4. With 0.8 a MiniLM encoder gains 5 dB of SQNR; with 0.5, which the paper recommends
for larger models, it loses 3 dB."""
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The strengths that the search tries."""
_LEAST = 0.01  # of the mean: lower bound of a channel's maximum, as a channel silent in calibration may not stay silent
_QUIET = 0.1  # of the median energy, added to each row's: rows of small energy must not dominate the relative error
_BLOCK = 1 << 18  # values of a weight that are quantized at a time
_PROJECTED = 64  # columns that those of a weight are projected to: an eighth of the work of all products
_MOST = 64.0  # largest factor relative to the geometric mean: the weight has only 8 bits too


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of an activation, and the range of all of its rows.

    Attributes:
        values: the rows, float32 [M, K].
        sample: index of the sample that each row belongs to, int64 [M].
        low, high: smallest and largest value of each channel in each sample, over all rows, float32 [S, K].
    """

    values: NDArray[np.float32]
    sample: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def absmax(self) -> NDArray[np.float32]:
        """Largest absolute value of each channel over all samples, float32 [K]."""
        found: NDArray[np.float32] = np.maximum(np.abs(self.low), np.abs(self.high)).max(axis=0)
        return found

    def widened(self, absmax: NDArray[np.float32]) -> Rows:
        """Return the same rows with ranges that also cover the per-channel maxima of other samples.

        Args:
            absmax: largest absolute value of each channel in other samples, float32 [K]. It extends the side, positive
                or negative, on which the channel has its larger absolute value here.
        """
        up = self.high.max(axis=0) >= -self.low.min(axis=0)
        low = np.where(up, self.low, np.minimum(self.low, -absmax))
        return replace(self, low=low, high=np.where(up, np.maximum(self.high, absmax), self.high))


@dataclass(frozen=True, slots=True)
class Smoothing:
    """The result of a search.

    Attributes:
        factors: what the activation is divided by, float32 [K].
        strength: the chosen strength; 0 for no smoothing.
        db: SQNR of the products with the factors, in dB.
        plain_db: SQNR of the products without smoothing, in dB.
    """

    factors: NDArray[np.float32]
    strength: float
    db: float
    plain_db: float

    @property
    def noise_removed(self) -> float:
        """Noise that the factors remove, as a share of the products' energy."""
        return float(10.0 ** (-self.plain_db / 10.0) - 10.0 ** (-self.db / 10.0))


def smoothing_factors(
    x_absmax: NDArray[np.float32], w_absmax: NDArray[np.float32], strength: float = STRENGTH
) -> NDArray[np.float32]:
    """Compute smoothing factors: s_j = max|x_j|**alpha / max|W_j|**(1 - alpha), with a geometric mean of 1.

    Args:
        x_absmax: largest absolute value of each channel of the activation, float32 [K].
        w_absmax: largest absolute value of each row of the weight [K, N], float32 [K].
        strength: alpha, 0 to 1. With 1, all of the activation's outliers move into the weight.

    Returns:
        The factors, float32 [K], from 1/64 to 64. The activation is divided by them, and the rows of the weight are
        multiplied by them.

    Source: SmoothQuant (Xiao et al. 2022), eq. 4.

    Example:
        >>> smoothing_factors(np.array([16.0, 1.0]), np.ones(2), strength=0.5).tolist()
        [2.0, 0.5]
    """
    x = np.maximum(x_absmax, max(_LEAST * float(x_absmax.mean()), 1e-12)).astype(np.float64)
    w = np.maximum(w_absmax, max(_LEAST * float(w_absmax.mean()), 1e-12)).astype(np.float64)
    factors = x**strength / w ** (1.0 - strength)
    factors /= np.exp(np.log(factors).mean())
    return np.clip(factors, 1.0 / _MOST, _MOST).astype(np.float32)


def search_smoothing(
    rows: Rows,
    tables: Iterable[NDArray[np.float32]],
    activation: QuantScheme,
    weights: Sequence[QuantScheme],
    *,
    per_sample: bool = False,
    strengths: Sequence[float] = STRENGTHS,
    columns: int | None = None,
) -> Smoothing:
    """Search the strength with the least error of the quantized products.

    The error is the mean over rows i of sum(||Q(x_i / s) Q(s W) - x_i W||**2) / sum(||x_i W||**2), where both sums run
    over the weights W. It is relative per row, because a normalization behind the products gives rows of small and of
    large values the same weight. The norms are those of a random projection of the columns, the same for all strengths.

    Args:
        rows: the activation x [M, K].
        tables: the weights W that x is multiplied with, float32 [K, N] each. They are iterated over twice, so that only
            one need be in memory.
        activation: scheme of x, per tensor.
        weights: scheme of each weight; its axis refers to [K, N].
        per_sample: whether x is quantized with a range per sample (dynamic quantization), else with one range.
        strengths: the strengths to try, besides 0, which has factors of 1.
        columns: how many columns of each weight to look at, evenly spaced, where each has a scale of its own; None for
            all of them. Factors follow from the maxima of all columns.

    Returns:
        The best factors, and the SQNR with and without them.

    Source: AWQ (Lin et al. 2023), eq. 4 and 5, with the factors of SmoothQuant (Xiao et al. 2022), eq. 4, and with the
    activation quantized too. Projection by signs: Achlioptas 2003, Database-friendly random projections.
    """
    w_absmax = np.max([np.maximum(table.max(axis=1), -table.min(axis=1)) for table in tables], axis=0)
    ones = np.ones(rows.values.shape[1], np.float32)
    tried = [(0.0, ones), *((s, smoothing_factors(rows.absmax, w_absmax, s)) for s in strengths)]
    activations = [_quantized(rows, factors, activation, per_sample) for _, factors in tried]
    energy, noise = np.zeros(len(rows.values)), np.zeros((len(tried), len(rows.values)))
    for whole, scheme in zip(tables, weights, strict=True):
        table, share = _sampled(whole, scheme, columns)
        projection = _projection(table.shape[1])
        plain = np.zeros((len(table), projection.shape[1]), np.float32)
        changed = [np.zeros_like(plain) for _ in tried]
        for some in _blocks(table, scheme):
            block, mix = np.ascontiguousarray(table[:, some]), projection[some]
            plain += block @ mix
            for (_, factors), sums in zip(tried, changed, strict=True):
                scaled = block * factors[:, None]
                params = weight_params(scaled, scheme)
                sums += dequantize(quantize(scaled, params), params) @ mix
        plain *= share
        wanted = rows.values @ plain
        energy += np.square(wanted, dtype=np.float64).sum(axis=1)
        for i, (x, sums) in enumerate(zip(activations, changed, strict=True)):
            sums *= share
            noise[i] += np.square(x @ sums - wanted, dtype=np.float64).sum(axis=1)
    energy += max(_QUIET * float(np.median(energy)), 1e-30)
    plain_db, *others = (float(-10.0 * np.log10(max(float(np.mean(one / energy)), 1e-30))) for one in noise)
    best = Smoothing(ones, 0.0, plain_db, plain_db)
    for (strength, factors), found_db in zip(tried[1:], others, strict=True):
        if found_db > best.db:
            best = Smoothing(factors, strength, found_db, plain_db)
    return best


def _sampled(
    table: NDArray[np.float32], scheme: QuantScheme, most: int | None
) -> tuple[NDArray[np.float32], np.float32]:
    """Evenly spaced columns of a weight, and the factor that gives their products the energy of those of all columns.

    All columns where they share scales, as those depend on all of them.
    """
    count = table.shape[1]
    if most is None or count <= most or not _apart(scheme):
        return table, np.float32(1)
    at = np.arange(most) * count // most
    return np.ascontiguousarray(table[:, at]), np.float32((count / most) ** 0.5)


def _projection(count: int) -> NDArray[np.float32]:
    """A matrix [count, P] that keeps sums of squares: the expected ||y R||**2 is ||y||**2. The identity for small P."""
    if count <= _PROJECTED:
        return np.eye(count, dtype=np.float32)
    signs = np.random.default_rng(count).integers(0, 2, (count, _PROJECTED), np.int8)
    return (2 * signs - 1).astype(np.float32) / np.float32(_PROJECTED**0.5)


def _blocks(table: NDArray[np.float32], scheme: QuantScheme) -> Iterator[slice]:
    """The columns of a weight in blocks that fit the CPU's cache; in one if its columns share scales."""
    count = table.shape[1]
    step = max(1, _BLOCK // len(table)) if _apart(scheme) else max(count, 1)
    return (slice(start, start + step) for start in range(0, count, step))


def _apart(scheme: QuantScheme) -> bool:
    """Whether each column of a weight [K, N] has a scale of its own."""
    return isinstance(scheme.granularity, PerChannel) and scheme.granularity.axis % 2 == 1


def _quantized(rows: Rows, factors: NDArray[np.float32], scheme: QuantScheme, per_sample: bool) -> NDArray[np.float32]:
    """x / s [M, K], quantized and dequantized with a range per sample or one range for all."""
    low, high = (rows.low / factors).min(axis=1), (rows.high / factors).max(axis=1)
    if per_sample:
        low, high, scheme = low[rows.sample], high[rows.sample], replace(scheme, granularity=PerChannel(0))
    else:
        low, high = low.min(), high.max()
    params = params_from_range(low, high, scheme)
    return dequantize(quantize(rows.values / factors, params), params)
