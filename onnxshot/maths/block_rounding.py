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
_PANEL = 64  # columns whose errors reach one another one by one; those of earlier panels arrive in one product


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How the error of a rounded column is made up for by the columns that are rounded after it.

    Layers that read the same input share it. It holds 8 bytes for each of the K * K second moments.

    Attributes:
        size: columns a block; blocks are rounded whole, in falling order of their second moments, and the columns
            of a block in falling order of theirs.
        order: the order in which columns are rounded [K].
        factor: upper Cholesky factor of the inverse of the damped second moments, in that order [K, K].
        moments: the second moments, not damped, in the order of the inputs [K, K].
    """

    size: int
    order: NDArray[np.int64]
    factor: Floats
    moments: Floats

    @property
    def importance(self) -> Floats:
        """The damped second moment of each input [K]: how much an error of its weights counts."""
        diagonal: Floats = self.moments.diagonal()
        return np.asarray(
            diagonal + np.maximum(np.float32(DAMPING) * diagonal.mean(), np.finfo(np.float32).tiny), np.float32
        )


def spread_of(moments: NDArray[np.floating], size: int) -> Spread:
    """Prepare second moments for `round_blocks`.

    Args:
        moments: second moments of the layer's inputs x [K, K]: E[x x'], or a sum of x x'.
        size: columns a block, as in the scheme of `round_blocks`.

    Raises:
        NotFinite: the moments hold NaN or infinity.
    """
    if not np.isfinite(moments).all():
        raise NotFinite("second moments hold NaN or infinity")
    diagonal = moments.diagonal()
    starts = np.arange(0, len(diagonal), size)
    blocks = np.argsort(-np.add.reduceat(diagonal, starts), kind="stable")
    order = np.concatenate(
        [start + np.argsort(-diagonal[start : start + size], kind="stable") for start in starts[blocks].tolist()]
    )
    factor = inverse_factor(damped_in_order(moments[None], order[None]))[0]
    return Spread(size, order, factor, moments.astype(np.float32, copy=False))


def round_blocks(
    weight: NDArray[np.floating],
    spread: Spread,
    scheme: QuantScheme,
    importance: NDArray[np.floating] | None = None,
    scale_type: DTypeLike = np.float32,
) -> tuple[NDArray[Any], QuantParams]:
    """Choose integers and scales that minimize E[|(weight - dequantized) x|**2], with GPTQ.

    Blocks of columns are rounded one after another. When a block is reached, its scale and zero point are fitted to
    the weights that make up for the errors so far. Then its columns are rounded one after another.

    Memory: about 4 arrays of _ROWS_BYTES, and the result.

    Args:
        weight: float weights [N, K].
        spread: of the second moments of the layer's inputs, with the block size of the scheme.
        scheme: integer type and symmetry, with granularity PerBlock(1, size).
        importance: how much an error counts when scales are fitted, per input [K]; the second moments if None.
        scale_type: float32, float16 or bfloat16, as in `fit_blocks`.

    Returns:
        The integers [N, K] in the storage dtype (one value a byte), and scales and zero points [N, ceil(K / size)].

    Raises:
        NotFinite: the weight holds NaN or infinity.
        ValueError: the spread has another block size or another number of inputs.

    Source: Frantar et al. 2022 (GPTQ), eq. 2 and 3, and section 3.3.
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
    limits = ScaleLimits.of(scale_type)
    some = max(1, _ROWS_BYTES // (4 * inputs))
    for start in range(0, outputs, some):
        rows = slice(start, start + some)
        turned = np.ascontiguousarray(weight[rows].T, np.float32)
        whole = np.empty(turned.shape, np.int16)
        _round_columns(turned, spread, scheme, counts, limits, whole, scale[rows], zero[rows])
        codes[rows] = whole.T.astype(scheme.dtype.storage)
    return codes, QuantParams(scheme, scale, zero.astype(scheme.dtype.storage))


def _round_columns(
    weight: Floats,
    spread: Spread,
    scheme: QuantScheme,
    importance: Floats,
    limits: ScaleLimits,
    codes: NDArray[np.int16],
    scale: Floats,
    zero: Floats,
) -> None:
    """Round weights [K, N]; `codes` [K, N], `scale` and `zero` [N, blocks] are filled."""
    size, order, factor = spread.size, spread.order, spread.factor
    errors = np.empty_like(weight)  # in the order of rounding
    qmin, qmax = scheme.limits
    for block in _blocks(order, size):
        now = weight[order[block]] - factor[: block.start, block].T @ errors[: block.start]
        counts = np.broadcast_to(importance[order[block], None], now.shape)
        steps, middle = fit_columns(now, scheme, counts, limits)
        number = int(order[block.start]) // size
        scale[:, number], zero[:, number] = steps, middle
        for panel in _panels(block):
            inside = slice(panel.start - block.start, panel.stop - block.start)
            now[inside] -= factor[block.start : panel.start, panel].T @ errors[block.start : panel.start]
            for j in range(panel.start, panel.stop):
                column = now[j - block.start] - factor[panel.start : j, j] @ errors[panel.start : j]
                found = np.clip(np.rint(column / steps) + middle, qmin, qmax)
                codes[order[j]] = found
                errors[j] = (column - (found - middle) * steps) / factor[j, j]


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


def retargeted(
    weight: NDArray[np.floating], cross: NDArray[np.floating], moments: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the weights whose outputs from the quantized network's inputs are closest to the float layer's outputs.

    They minimize E[|weight x - result y|**2] with x the float network's inputs and y the quantized network's.

    Args:
        weight: float weights [N, K].
        cross: E[x y'] [K, K]: float inputs along axis 0, quantized inputs along axis 1.
        moments: E[y y'] [K, K], the second moments that `spread_of` takes.

    Returns:
        Weights [N, K] of the weight's dtype. The damping of `spread_of` is taken as a pull towards `weight`.
    """
    damped = moments.astype(np.float64)
    diagonal = damped.diagonal()
    extra = max(DAMPING * float(diagonal.mean()), float(np.finfo(np.float32).tiny))
    damped[np.diag_indices(len(damped))] += extra
    change = np.linalg.solve(damped, (cross.astype(np.float64) - moments).T)
    return (weight + weight @ change.T.astype(weight.dtype)).astype(weight.dtype)
