"""GPTQ for weights in blocks: integers and scales chosen so that the outputs of a layer change least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxshot.maths.block_scales import ScaleLimits, block_size, fit_columns
from onnxshot.maths.gptq import DAMPING, damped_in_order
from onnxshot.maths.optimal_brain_surgeon import inverse_factor
from onnxshot.maths.quant_scheme import NotFinite, QuantParams, QuantScheme

Floats = NDArray[np.float32]

_ROWS_BYTES = 32 << 20  # bytes of each of the arrays [K, outputs] that are held while some outputs are rounded
_DAMPING = 0.002  # added to the diagonal, as a share of the mean second moment, beside the shrinkage
_SHRINKAGE = 0.8  # of the moments towards their diagonal, times K / (K + rows): what few rows say of pairs is chance
_SWEEPS = 3  # of coordinate descent after GPTQ
_PANEL = 64  # columns whose errors reach one another one by one; those of earlier panels arrive in one product


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How the error of a rounded column is made up for by the columns that are rounded after it.

    Layers that read the same input share it. It holds 8 bytes for each of the K * K second moments; making it takes
    about 40.

    Attributes:
        size: columns a block; blocks are rounded whole, in falling order of their second moments, and the columns
            of a block in falling order of theirs.
        order: the order in which columns are rounded [K].
        factor: upper Cholesky factor of the inverse of the damped second moments, in that order [K, K].
        moments: the second moments, shrunk and damped, in the order of the inputs [K, K], with a mean diagonal of 1.
    """

    size: int
    order: NDArray[np.int64]
    factor: Floats
    moments: Floats

    @property
    def importance(self) -> Floats:
        """The second moment of each input [K]: how much an error of its weights counts."""
        return np.asarray(self.moments.diagonal())


def spread_of(
    moments: NDArray[np.floating], size: int, rows: int | None = None, *, shrinkage: float | None = None
) -> Spread:
    """Prepare second moments for `round_blocks`.

    With few rows, the moments of pairs of inputs are mostly chance, and what is made up for by them is lost on other
    rows. So they are shrunk towards their diagonal, by a share of 0.8 K / (K + rows).

    Args:
        moments: second moments of the layer's inputs x [K, K]: E[x x'], or a sum of x x'.
        size: columns a block, as in the scheme of `round_blocks`.
        rows: number of rows x of the sum; None if the moments are taken as they are.
        shrinkage: the share by which they are shrunk towards their diagonal, 0 to 1; None for the one of `rows`.

    Raises:
        NotFinite: the moments hold NaN or infinity.
    """
    if not np.isfinite(moments).all():
        raise NotFinite("second moments hold NaN or infinity")
    inputs = len(moments)
    diagonal = moments.diagonal()
    starts = np.arange(0, inputs, size)
    blocks = np.argsort(-np.add.reduceat(diagonal, starts), kind="stable")
    order = np.concatenate(
        [start + np.argsort(-diagonal[start : start + size], kind="stable") for start in starts[blocks].tolist()]
    )
    shrunk = _shrunk(moments, order, _share(inputs, rows) if shrinkage is None else shrinkage)
    mean = shrunk.diagonal().mean()  # the integers do not depend on the unit; float32 holds any in units of the mean
    shrunk /= mean
    factor = inverse_factor(shrunk[None])[0]
    found = np.empty((inputs, inputs), np.float32)
    found[np.ix_(order, order)] = shrunk
    return Spread(size, order, factor, found)


def shrinkage_for(inputs: int, rows: int) -> float:
    """The share by which second moments of some inputs over some rows are shrunk towards their diagonal."""
    return _SHRINKAGE * inputs / (inputs + rows)


def round_blocks(
    weight: NDArray[np.floating],
    spread: Spread,
    scheme: QuantScheme,
    importance: NDArray[np.floating] | None = None,
    scale_type: DTypeLike = np.float32,
    *,
    signed_scales: bool = False,
) -> tuple[NDArray[Any], QuantParams]:
    """Choose integers and scales that minimize E[|(weight - dequantized) x|**2], with GPTQ and coordinate descent.

    Blocks of columns are rounded one after another. When a block is reached, its scale and zero point are fitted to
    the weights that make up for the errors so far. Then its columns are rounded one after another. Afterwards each
    integer, scale and zero point in turn takes its best value given all others, a few times over.

    Memory: about 6 arrays of _ROWS_BYTES, and the result.

    Args:
        weight: float weights [N, K].
        spread: of the second moments of the layer's inputs, with the block size of the scheme.
        scheme: integer type and symmetry, with granularity PerBlock(1, size).
        importance: how much an error counts when scales are fitted, per input [K]; the second moments if None.
        scale_type: float32, float16 or bfloat16, as in `fit_blocks`.
        signed_scales: whether scales may be negative where the scheme is symmetric, as in `fit_blocks`.

    Returns:
        The integers [N, K] in the storage dtype (one value a byte), and scales and zero points [N, ceil(K / size)].

    Raises:
        NotFinite: the weight holds NaN or infinity.
        ValueError: the spread has another block size or another number of inputs.

    Source: Frantar et al. 2022 (GPTQ), eq. 2 and 3, and section 3.3; Behdin et al. 2023 (QuantEase), section 3, for
    the descent over integers.
    """
    outputs, inputs = weight.shape
    size = block_size(scheme)
    if spread.size != size or len(spread.order) != inputs:
        raise ValueError(f"a spread of {len(spread.order)} inputs in blocks of {spread.size}, found {inputs}, {size}")
    if not np.isfinite(weight).all():
        raise NotFinite("weight holds NaN or infinity")
    counts = spread.importance if importance is None else importance.astype(np.float32)
    codes = np.empty(weight.shape, scheme.dtype.storage)
    blocks = -(-inputs // size)
    scale, zero = np.empty((outputs, blocks), np.float32), np.empty((outputs, blocks), np.float32)
    some = max(1, _ROWS_BYTES // (4 * inputs))
    for start in range(0, outputs, some):
        rows = slice(start, start + some)
        turned = np.ascontiguousarray(weight[rows].T, np.float32)
        rounding = _Rounding(turned, spread, scheme, ScaleLimits.of(scale_type))
        rounding.compensate(counts, signed=signed_scales)
        for _ in range(_SWEEPS):
            rounding.descend()
        codes[rows] = rounding.codes.T.astype(scheme.dtype.storage)
        scale[rows], zero[rows] = rounding.scale.T, rounding.zero.T
    return codes, QuantParams(scheme, scale, zero.astype(scheme.dtype.storage))


class _Rounding:
    """Some outputs' weights while they are rounded: arrays [K, N], and [blocks, N] of scales and zero points."""

    def __init__(self, weight: Floats, spread: Spread, scheme: QuantScheme, limits: ScaleLimits) -> None:
        self._weight, self._spread, self._scheme, self._limits = weight, spread, scheme, limits
        blocks = -(-len(weight) // spread.size)
        self.codes = np.empty(weight.shape, np.float32)
        self.scale = np.empty((blocks, weight.shape[1]), np.float32)
        self.zero = np.empty((blocks, weight.shape[1]), np.float32)

    def compensate(self, importance: Floats, *, signed: bool) -> None:
        """Round column after column; those that follow make up for the errors: GPTQ."""
        size, order, factor = self._spread.size, self._spread.order, self._spread.factor
        errors = np.empty_like(self._weight)  # in the order of rounding, in units of the factor's diagonal
        qmin, qmax = self._scheme.limits
        for block in _blocks(order, size):
            now = self._weight[order[block]] - factor[: block.start, block].T @ errors[: block.start]
            counts = np.broadcast_to(importance[order[block], None], now.shape)
            steps, middle = fit_columns(now, self._scheme, counts, self._limits, signed=signed)
            number = int(order[block.start]) // size
            self.scale[number], self.zero[number] = steps, middle
            for panel in _panels(block):
                inside = slice(panel.start - block.start, panel.stop - block.start)
                now[inside] -= factor[block.start : panel.start, panel].T @ errors[block.start : panel.start]
                for j in range(panel.start, panel.stop):
                    column = now[j - block.start] - factor[panel.start : j, j] @ errors[panel.start : j]
                    found = np.clip(np.rint(column / steps) + middle, qmin, qmax)
                    self.codes[order[j]] = found
                    errors[j] = (column - (found - middle) * steps) / factor[j, j]

    def descend(self) -> None:
        """Give each integer, scale and zero point in turn the value of least error, all others being fixed."""
        moments, size = self._spread.moments, self._spread.size
        left = self._weight - self._floats()
        for number in range(len(self.scale)):
            block = slice(number * size, min((number + 1) * size, len(left)))
            own = moments[block, block]
            pull = moments[block] @ left  # half of what the error falls by, for each unit that a weight grows by
            for change in (self._integers, self._scales, self._zeros):
                grown = change(number, block, own, pull)
                if grown is not None:
                    left[block] -= grown
                    pull -= own @ grown

    def _floats(self) -> Floats:
        block = np.arange(len(self.codes)) // self._spread.size
        return np.asarray((self.codes - self.zero[block]) * self.scale[block])

    def _integers(self, number: int, block: slice, own: Floats, pull: Floats) -> Floats:
        """Change integers; what the weights of the block grow by is returned."""
        qmin, qmax = self._scheme.limits
        scale = self.scale[number]
        codes = self.codes[block]
        grown = np.zeros_like(pull)
        for j in range(len(codes)):
            wanted = (pull[j] - own[j, :j] @ grown[:j]) / (own[j, j] * scale)
            found = np.clip(np.rint(codes[j] + wanted), qmin, qmax)
            grown[j] = (found - codes[j]) * scale
            codes[j] = found
        return grown

    def _scales(self, number: int, block: slice, own: Floats, pull: Floats) -> Floats:
        steps = self.codes[block] - self.zero[number]
        gain, cost = np.einsum("kn,kn->n", pull, steps), np.einsum("kn,kn->n", steps, own @ steps)
        old = self.scale[number]
        new = self._limits.stored(old + gain / np.where(cost > 0, cost, np.inf))
        change = new - old
        falls = np.sign(change) * (2 * gain - change * cost) > 0  # the sign alone: a product may overflow
        better = falls & (np.sign(new) == np.sign(old))
        self.scale[number] = np.where(better, new, old)
        return np.asarray(np.where(better, change, np.float32(0.0)) * steps)

    def _zeros(self, number: int, block: slice, own: Floats, pull: Floats) -> Floats | None:
        if self._scheme.symmetric:
            return None
        qmin, qmax = self._scheme.limits
        scale, old = self.scale[number], self.zero[number]
        wanted = old - pull.sum(axis=0) / (own.sum() * scale)
        self.zero[number] = np.clip(np.rint(wanted), qmin, qmax)
        return np.broadcast_to((old - self.zero[number]) * scale, pull.shape)


def _blocks(order: NDArray[np.int64], size: int) -> Iterator[slice]:
    """Slices of the order that hold one block each. The short last block may stand anywhere."""
    start = 0
    while start < len(order):
        first = int(order[start]) // size * size
        stop = start + min(size, len(order) - first)
        yield slice(start, stop)
        start = stop


def _panels(block: slice) -> Iterator[slice]:
    for start in range(block.start, block.stop, _PANEL):
        yield slice(start, min(start + _PANEL, block.stop))


def _share(inputs: int, rows: int | None) -> float | None:
    """The share by which moments of some rows are shrunk."""
    return None if rows is None else shrinkage_for(inputs, rows)


def _shrunk(moments: NDArray[np.floating], order: NDArray[np.int64], share: float | None) -> NDArray[np.float64]:
    """Copy moments [K, K] in an order, shrunk towards their diagonal by a share, and damped."""
    found = damped_in_order(moments[None], order[None], DAMPING if share is None else _DAMPING)[0]
    if share is not None:
        kept = found.diagonal().copy()
        found *= 1.0 - share
        found[np.diag_indices(len(found))] = kept
    return np.asarray(found)
