"""How strongly a layer is damped while it is pruned, and whether its weight moves: what held-out samples prefer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.pruning_masks import Mask, Pattern
from onnxshot.maths.ridge_regression import Moments, change, ridge

_STRENGTHS = (0.01, 0.1, 1.0)  # candidate strengths of ridge and damping, relative to the mean second moment
_DAMPING = 0.1  # for the first mask; SparseGPT, section 4, uses 0.01 on a thousand times the rows
_OUTPUTS = 128  # outputs of each group that are compared, at most: a sum over more says the same
_STEPS = 15

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Strength:
    """How a layer is fitted.

    Attributes:
        damping: Strength of ridge and damping, relative to the mean second moment.
        moves: Whether the weight is refitted to the target outputs before pruning.
    """

    damping: float
    moves: bool


def best_strength(
    weight: Floats, learned: Moments, others: Moments, pattern: Pattern, count: int, fixed: Mask
) -> Strength:
    """Choose the strength whose pruned layer, fitted on most samples, has the least error on the held-out ones.

    With few or noisy rows, a refit increases the error. Of large layers, evenly spread outputs are compared.

    Args:
        weight: The dense weight [G, O, K].
        learned: Moments of the samples to fit on.
        others: Moments of the held-out samples.
        pattern: Pattern of the zeros.
        count: Number of zeros.
        fixed: [G, O, K], weights that are zero in any case.
    """
    if len(optimal_brain_surgeon.outputs_at_once(weight)) > 1:  # its copies take much memory
        some, whole = slice(None, None, max(weight.shape[1] // (4 * _OUTPUTS), 1)), weight.size
        weight, fixed = weight[:, some], fixed[:, some]
        learned, others = learned.of_outputs(some), others.of_outputs(some)
        count = round(count * weight.size / whole)
    gone, start = fixed, weight
    if count:
        factor = optimal_brain_surgeon.inverse_factor(learned.damped(_DAMPING))
        gone, start = optimal_brain_surgeon.prune(weight, factor, pattern, count, fixed)
    picked = slice(None, None, -(-weight.shape[1] // _OUTPUTS))
    weight, gone, start = weight[:, picked], gone[:, picked], start[:, picked]
    learned, others = learned.of_outputs(picked), others.of_outputs(picked)
    if gone.any():
        return _of_pruned(weight, gone, start, learned, others)
    gains = {s: change(others, weight, ridge(learned, weight, s)) for s in _STRENGTHS}
    best = min(gains, key=lambda strength: gains[strength])
    return Strength(best, moves=True) if gains[best] < 0 else Strength(_DAMPING, moves=False)


def _of_pruned(weight: Floats, gone: Mask, start: Floats, learned: Moments, others: Moments) -> Strength:
    """The best strength for weights with this mask. start: [G, O, K], where fits begin."""
    options = [Strength(damping, moves) for damping in _STRENGTHS for moves in (False, True)]
    added = np.stack([learned.added(option.damping)[:, None].astype(np.float32) for option in options])
    given = weight @ learned.xx  # what the damped weight W0 (X X^T + L) is without L
    aims = np.stack([(learned.yx if option.moves else given) for option in options]) + weight * added
    fitted = optimal_brain_surgeon.solve(aims, learned.xx, added, gone, start, _STEPS)
    step = fitted - weight
    missing = others.yx - weight @ others.xx
    changes = np.einsum("sgok,sgok->sgo", step, step @ others.xx - 2 * missing).sum((1, 2), dtype=np.float64)
    finite = np.where(np.isfinite(changes), changes, np.inf)
    best = int(finite.argmin())
    return options[best] if np.isfinite(finite[best]) else Strength(_DAMPING, moves=False)
