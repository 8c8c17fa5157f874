"""GPTQ: round the weights of a layer so that the layer's outputs change least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.optimal_brain_surgeon import inverse_factor

Floats = NDArray[np.float64]

DAMPING = 0.01  # added to the diagonal, as a share of the mean second moment: GPTQ, section 3.3, step 3
_ROWS_BYTES = 64 << 20  # bytes of weights in float64, with copies, that are rounded at a time
_BLOCK = 64  # columns rounded before the columns behind them are updated: GPTQ, section 3.3, step 2


def round_weights(
    weight: NDArray[np.floating], moments: NDArray[np.floating], scale: NDArray[np.floating], limits: tuple[int, int]
) -> NDArray[np.integer]:
    """Round weights to the integers q that minimize E[|(weight - scale * q) x|**2], with GPTQ.

    Columns are rounded one after another, in order of falling second moments. The columns that are not rounded yet
    compensate the error of each rounded one. Weights that are exactly 0 stay 0: pruning may have put the zeros there,
    and a runtime may rely on their pattern.

    Memory: about 40 bytes for each of the G * K * K second moments, and _ROWS_BYTES.

    Args:
        weight: float weights [G, O, K]: G independent groups of O outputs and K inputs.
        moments: second moments of the layer's inputs x [G, K, K], about their mean; about zero for a layer without a
            bias, which cannot absorb a change of the mean.
        scale: the scale of each output's weights [G, O].
        limits: the smallest and the largest integer allowed.

    Returns:
        The integers [G, O, K], as int8 if the limits allow it, else as int32.

    Source: Frantar et al. 2022 (GPTQ), eq. 2 and 3.

    Example:
        >>> weight, correlated = np.array([[[0.6, 0.6]]]), np.array([[[1.0, 0.9], [0.9, 1.0]]])
        >>> round_weights(weight, correlated, np.ones((1, 1)), (-7, 7)).tolist()
        [[[1, 0]]]
    """
    groups, outputs, columns = weight.shape
    order = np.argsort(-np.einsum("gkk->gk", moments), axis=1, kind="stable")
    spread = inverse_factor(damped_in_order(moments, order)).astype(np.float64)
    found = np.empty(weight.shape, np.int8 if limits[0] >= -128 and limits[1] <= 127 else np.int32)
    some = max(1, _ROWS_BYTES // (8 * 4 * groups * columns))
    for start in range(0, outputs, some):  # the outputs of a group do not depend on each other
        rows = slice(start, start + some)
        left = np.take_along_axis(weight[:, rows], order[:, None, :], 2).astype(np.float64)
        rounded = _rounded(left, spread, scale[:, rows], limits)
        np.put_along_axis(found[:, rows], np.broadcast_to(order[:, None, :], rounded.shape), rounded, 2)
    return found


def _rounded(left: Floats, spread: Floats, scale: NDArray[np.floating], limits: tuple[int, int]) -> Floats:
    """The integers for weights in the order in which they are rounded; `left` is overwritten."""
    groups, outputs, columns = left.shape
    alive = left != 0.0
    rounded = np.zeros_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.zeros((groups, outputs, end - start))
        for j in range(start, end):
            rounded[:, :, j] = np.clip(np.rint(left[:, :, j] / scale), *limits) * alive[:, :, j]
            error = (left[:, :, j] - rounded[:, :, j] * scale) / spread[:, j, j, None]
            left[:, :, j:end] -= error[:, :, None] * spread[:, None, j, j:end]
            errors[:, :, j - start] = error
        left[:, :, end:] -= errors @ spread[:, start:end, end:]
    return rounded


def damped_in_order(moments: NDArray[np.floating], order: NDArray[np.int64], damping: float = DAMPING) -> Floats:
    """Copy second moments [G, K, K], with rows and columns in an order [G, K], and add damping to the diagonal.

    The damping is a share of the mean of the diagonal.
    """
    groups = np.arange(len(order))[:, None, None]
    damped = moments[groups, order[:, :, None], order[:, None, :]].astype(np.float64, copy=False)
    columns = np.arange(order.shape[1])
    mean = damped[:, columns, columns].mean(axis=1)
    damped[:, columns, columns] += np.maximum(damping * mean, np.finfo(np.float32).tiny)[:, None]
    return damped
