"""Balance the columns of a product's input against the rows of its weight: x W = (x / s) (s W), s powers of two.

Features of very different size in one tensor (boxes in pixels beside scores, a table that is not scaled) have weights
of inversely different size. One scale for the tensor then rounds away its small columns, and one scale for an output's
weights rounds away those of the large columns. With s between the two, both are even, and nothing is lost: a power of
two changes no digit of a float.

The idea is that of SmoothQuant (Xiao et al. 2022, eq. 3 and 4). Here both sides gain, so no data need be weighed
against the weights, and the factors have no limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNEQUAL = 16.0
"""Mean over a weight's rows of (rms of all rows / rms of the row)**2 from which its product is looked at. If all rows
add alike to the outputs, the rounded weights cause so many times the noise that even rows would. Trained layers behind
a normalization have 1 to 4."""
_SMALL = 16.0  # a row that is smaller than the largest by this factor is taken for that of a large feature, unseen
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_GAIN = 4.0  # the noise falls at least by this factor (6 dB)
_LOUD = 10.0**-2.0  # noise over energy (20 dB) below which a product is left alone
_QUIET = 0.1  # of the median energy, added to each row's: rows of small energy must not dominate the relative error
_OUTPUTS = 128  # of a weight, evenly spaced, that are looked at
_TINY = 1e-6  # of the largest: what counts as zero
_MOST_LOG2 = 24
_UNSEEN = 0.6  # exponent of factors without data; with more, rows of unused features add noise


def rows_differ(table: NDArray[np.float32]) -> bool:
    """Whether the rows of a weight [K, N] are as unequal as `UNEQUAL` says. Rows of zeros do not count."""
    squares = np.square(_some_columns(table), dtype=np.float64).mean(axis=1)
    alive = squares[squares > _TINY**2 * squares.max(initial=0.0)]
    return bool(len(alive) > 1 and (alive.mean() / alive).mean() >= UNEQUAL)


def balancing_factors(
    absmax: Floats, rows: NDArray[np.float32], tables: Iterable[NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """Factors that the columns of x are divided by, and the rows of all weights multiplied by.

    The noise is measured: that of the products with x rounded to 8 bits by one scale, that with the weights rounded to
    8 bits by a scale per output, each over the energy of a row and on average over the rows.

    Args:
        absmax: largest absolute value of each column of x, float64 [K].
        rows: some rows of x, float32 [M, K].
        tables: the weights that x is multiplied with, float32 [K, N] each.

    Returns:
        Powers of two, float32 [K]; None where neither side loses, and both together do not gain 6 dB.

    Example:
        >>> x, w = np.float32([[512, 0.1, 0.7], [300, 0.9, -0.2]]), np.float32([[1 / 512], [1], [1]])
        >>> balancing_factors(np.abs(x).max(axis=0).astype(np.float64), x, [w]).tolist()
        [512.0, 1.0, 1.0]
    """
    seen = np.where(absmax > _TINY * absmax.max(initial=0.0), absmax, 0.0)
    taken = [_some_columns(table).astype(np.float64) for table in tables]
    sizes = np.sqrt(sum((table**2).mean(axis=1) for table in taken))
    alive = (seen > 0) & (sizes > 0)
    if alive.sum() < 2 or not all(np.isfinite(part).all() for part in (seen, sizes, rows)):
        return None
    floor = _TINY * sizes.max()  # a column that the weights ignore is scaled down, so that it widens no range
    tried = [_powers(seen, np.maximum(sizes, floor), alive, strength) for strength in _STRENGTHS]
    x, table = rows.astype(np.float64), np.concatenate(taken, axis=1)
    plain = _noise(x, seen, table, np.ones(len(seen)))
    if plain.total < _LOUD:
        return None
    others = [_noise(x, seen, table, factors) for factors in tried]
    best = min(range(len(others)), key=lambda i: others[i].total)
    found = others[best]
    lower = found.activation <= plain.activation and found.weight <= plain.weight
    if not lower or found.total * _GAIN > plain.total:
        return None
    return tried[best].astype(np.float32)


def factors_without_data(tables: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Factors for the columns of a model input that nothing is known of, from the weights alone, float32 [K].

    Rows that are 16 times smaller than the largest are taken for those of large features, and get
    (largest / size)**0.6. Where they are those of features that the model hardly uses, little is lost: their columns
    are rounded more coarsely, but what they add to the noise stays below a third of it.
    """
    sizes = np.sqrt(sum((_some_columns(table).astype(np.float64) ** 2).mean(axis=1) for table in tables))
    ratio = sizes.max() / np.maximum(sizes, _TINY * sizes.max())
    logs = np.where(ratio >= _SMALL, np.rint(_UNSEEN * np.log2(ratio)), 0.0)
    return np.exp2(logs).astype(np.float32)


def _some_columns(table: NDArray[np.float32]) -> NDArray[np.float32]:
    count = table.shape[1]
    return table if count <= _OUTPUTS else table[:, np.arange(_OUTPUTS) * count // _OUTPUTS]


def _powers(seen: Floats, sizes: Floats, alive: NDArray[np.bool_], strength: float) -> Floats:
    """The powers of two nearest to seen**strength / sizes**(1 - strength), with a median of 1 over what is alive.

    A column that was silent on the samples is scaled down by what its weights suggest, and never up.
    """
    silent = seen == 0
    logs = np.log2(np.where(silent, 1.0, seen)) * strength - np.log2(sizes) * (1.0 - strength)
    logs -= np.median(logs[alive])
    by_weights = np.median(np.log2(sizes[alive])) - np.log2(sizes)
    logs = np.where(silent, np.maximum(by_weights, 0.0), logs)
    powers: Floats = np.exp2(np.clip(np.rint(logs), -_MOST_LOG2, _MOST_LOG2))
    return powers


@dataclass(frozen=True, slots=True)
class _Noise:
    """Noise over the energy of the products: that of the rounded input, and that of the rounded weights."""

    activation: float
    weight: float

    @property
    def total(self) -> float:
        return self.activation + self.weight


def _noise(x: Floats, absmax: Floats, table: Floats, factors: Floats) -> _Noise:
    """The noise of int8 with one scale for the input [M, K], and one for each output of the weights [K, N]."""
    low, high = float((x / factors).min()), float((absmax / factors).max())
    step = (high - min(low, 0.0)) / 255.0
    scaled = table * factors[:, None]
    steps = np.maximum(np.abs(scaled).max(axis=0) / 127.0, np.finfo(np.float64).tiny)
    energy = ((x @ table) ** 2).sum(axis=1)
    energy += max(_QUIET * float(np.median(energy)), np.finfo(np.float64).tiny)

    def share(error: Floats) -> float:
        return float(((error**2).sum(axis=1) / energy).mean())

    rounded = np.rint(x / factors / step) * step - x / factors
    return _Noise(share(rounded @ scaled), share((x / factors) @ (np.rint(scaled / steps) * steps - scaled)))
