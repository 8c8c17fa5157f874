"""Round the weights of a layer so that its outputs, not its weights, change least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DAMPING = 0.01  # of the mean second moment: GPTQ, section 3.3, step 3
_BLOCK = 64  # columns whose error is spread beyond themselves at once: GPTQ, section 3.3, step 2


def round_weights(
    weight: NDArray[np.floating], moments: NDArray[np.floating], scale: NDArray[np.floating], limits: tuple[int, int]
) -> Floats:
    """Integers q of least E[|(weight - scale * q) x|**2], column by column. [G, O, K], [G, K, K], [G, O] -> [G, O, K].

    GPTQ (Frantar et al. 2022), eq. 2 and 3, with the columns in order of falling second moments: the error of each
    column is made up for by those that are not rounded yet. G groups are independent. moments: second moments of the
    input x about its mean, or about zero where there is no bias to take the mean up. limits: least and largest q.
    Weights that are exactly 0 stay so: zeros are a pattern that pruning has made, or that a runtime makes use of.
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
    """Upper Cholesky factor of the inverse of the damped moments: row j says how column j's error is made up for."""
    columns = np.arange(moments.shape[1])
    mean = moments[:, columns, columns].mean(axis=1)
    damping = np.maximum(_DAMPING * mean, np.finfo(np.float32).tiny)
    damped = moments.copy()
    damped[:, columns, columns] += damping[:, None]
    # The moments reversed, factored, inverted and reversed back give the factor of the inverse.
    lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(lower)[:, ::-1, ::-1])
