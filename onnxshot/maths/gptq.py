"""GPTQ: round the weights of a layer so that the layer's outputs change least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DAMPING = 0.01  # added to the diagonal, as a share of the mean second moment: GPTQ, section 3.3, step 3
_BLOCK = 64  # columns rounded before the columns behind them are updated: GPTQ, section 3.3, step 2


def round_weights(
    weight: NDArray[np.floating], moments: NDArray[np.floating], scale: NDArray[np.floating], limits: tuple[int, int]
) -> Floats:
    """Round weights to the integers q that minimize E[|(weight - scale * q) x|**2], with GPTQ.

    Columns are rounded one after another, in order of falling second moments. The columns that are not rounded yet
    compensate the error of each rounded one. Weights that are exactly 0 stay 0: pruning may have put the zeros there,
    and a runtime may rely on their pattern.

    Args:
        weight: float weights [G, O, K]: G independent groups of O outputs and K inputs.
        moments: second moments of the layer's inputs x [G, K, K], about their mean; about zero for a layer without a
            bias, which cannot absorb a change of the mean.
        scale: the scale of each output's weights [G, O].
        limits: the smallest and the largest integer allowed.

    Returns:
        The integers, as float64 [G, O, K].

    Source: Frantar et al. 2022 (GPTQ), eq. 2 and 3.

    Example:
        >>> weight, correlated = np.array([[[0.6, 0.6]]]), np.array([[[1.0, 0.9], [0.9, 1.0]]])
        >>> round_weights(weight, correlated, np.ones((1, 1)), (-7, 7))
        array([[[1., 0.]]])
    """
    groups, _, columns = weight.shape
    order = np.argsort(-np.einsum("gkk->gk", moments), axis=1, kind="stable")
    sorted_moments = np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2)
    spread = _spread(sorted_moments.astype(np.float64))
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], 2)
    alive = left != 0.0
    rounded = np.zeros_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.zeros((groups, left.shape[1], end - start))
        for j in range(start, end):
            rounded[:, :, j] = np.clip(np.rint(left[:, :, j] / scale), *limits) * alive[:, :, j]
            error = (left[:, :, j] - rounded[:, :, j] * scale) / spread[:, j, j, None]
            left[:, :, j:end] -= error[:, :, None] * spread[:, None, j, j:end]
            errors[:, :, j - start] = error
        left[:, :, end:] -= errors @ spread[:, start:end, end:]
    found = np.empty_like(rounded)
    np.put_along_axis(found, np.broadcast_to(order[:, None, :], rounded.shape), rounded, 2)
    return found


def _spread(moments: Floats) -> Floats:
    """Upper Cholesky factor of the inverse of the damped moments. Row j distributes the error of column j."""
    columns = np.arange(moments.shape[1])
    mean = moments[:, columns, columns].mean(axis=1)
    damping = np.maximum(_DAMPING * mean, np.finfo(np.float32).tiny)
    damped = moments.copy()
    damped[:, columns, columns] += damping[:, None]
    # With rows and columns reversed before and after, the inverse of a lower factor is the upper factor of the inverse.
    lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(lower)[:, ::-1, ::-1])
