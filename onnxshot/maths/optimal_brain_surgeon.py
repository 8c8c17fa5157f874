"""Optimal Brain Surgeon and SparseGPT: prune weights so that the layer's outputs change least, and refit the others.

The error of a layer is tr((W - W*) H (W - W*)^T), where H holds the damped second moments of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.pruning_masks import Mask, Pattern, histogram, lowest_in_each, lowest_scores

Floats = NDArray[np.float32]

_AT_ONCE = 64 << 20  # bytes of a weight; the fit holds some ten arrays of the size that is fitted at once
_PANEL = 64  # columns pruned before the columns behind them are updated: SparseGPT, section 3.4 (there 128)
_STEPS = 60  # iterations of conjugate gradients, at most
_SMALL = 1e-5  # of the first residual: the iteration has converged
_LARGE, _FEW = 1 << 16, 0.6  # from this many weights on, rows that have converged are set aside when most have
_BLOCK = 128  # rows of a triangular matrix up to which it is inverted as a whole


def error(weight: Floats, target: Floats, moments: Floats) -> float:
    """Return tr((weight - target) moments (weight - target)^T), summed over groups.

    Args:
        weight: float32 [G, O, K]: G groups of O outputs and K inputs.
        target: the dense weight, float32 [G, O, K].
        moments: second moments of the inputs [G, K, K].

    Example:
        >>> error(np.zeros((1, 1, 2)), np.array([[[1.0, 2.0]]]), np.eye(2)[None])
        5.0
    """
    off = (weight - target).astype(np.float32)
    return float(np.einsum("gok,gok->", off @ moments.astype(np.float32), off, dtype=np.float64))


def prune_and_refit(target: Floats, moments: Floats, pattern: Pattern, count: int, fixed: Mask) -> Floats:
    """Prune `count` weights and refit the others; by the error on these moments, never worse than magnitude pruning.

    Args:
        target: the dense weight, float32 [G, O, K]: G groups of O outputs and K inputs.
        moments: second moments of the inputs [G, K, K], positive definite.
        pattern: the pattern of zeros.
        count: how many weights to prune, see `pruning_masks.lowest_scores`.
        fixed: True for weights that are pruned in any case, bool [G, O, K].

    Returns:
        The pruned weight, float32 [G, O, K].

    Raises:
        numpy.linalg.LinAlgError: the moments are not positive definite.

    Example:
        >>> weight, moments = np.array([[[1.0, 1.0]]], np.float32), np.array([[[2.0, 0.5], [0.5, 1.0]]], np.float32)
        >>> prune_and_refit(weight, moments, Pattern(), 1, np.zeros((1, 1, 2), bool)).tolist()
        [[[1.25, 0.0]]]
    """
    if not count:
        return refit(target, moments, fixed) if fixed.any() else target
    gone, found = prune(target, inverse_factor(moments), pattern, count, fixed)
    chunks = outputs_at_once(target)
    for chunk in chunks:
        part, lost = target[:, chunk], gone[:, chunk]
        found[:, chunk] = refit(part, moments, lost, found[:, chunk])
        fewest = count if len(chunks) == 1 else int(lost.sum())
        sizes = np.where(fixed[:, chunk], np.float32(-np.inf), np.square(part))
        smallest = _lowest(sizes, pattern, fewest) | fixed[:, chunk]
        if error(np.where(smallest, np.float32(0), part), part, moments) < error(found[:, chunk], part, moments):
            found[:, chunk] = refit(part, moments, smallest)
    return found


def outputs_at_once(weight: Floats) -> list[slice]:
    """Ranges of the outputs of a weight [G, O, K] that are refitted at once: one, unless its copies are too large."""
    groups, outputs, inputs = weight.shape
    size = max(_AT_ONCE // (4 * inputs), 1)
    if weight.nbytes <= _AT_ONCE or groups > 1:
        size = outputs
    return [slice(start, min(start + size, outputs)) for start in range(0, outputs, size)]


def prune(
    weight: Floats, factor: Floats, pattern: Pattern, count: int, fixed: Mask | None = None
) -> tuple[Mask, Floats]:
    """Prune weights with SparseGPT: choose a mask and update the remaining weights.

    Columns are pruned from left to right, panel by panel. The columns to the right compensate the error of each (OBS,
    eq. 3). The mask of a panel follows from the scores w^2 / [H^-1]_jj of its weights as updated so far. Unlike in the
    paper, panels differ in sparsity: how many weights each loses follows from scores of the whole layer, computed
    before any weight is pruned.

    Args:
        weight: float32 [G, O, K]: G independent groups, which share only the count.
        factor: `inverse_factor` of the second moments, float32 [G, K, K].
        pattern: the pattern of zeros.
        count: how many weights to prune, see `pruning_masks.lowest_scores`.
        fixed: True for weights that are pruned in any case, bool [G, O, K]; None for none.

    Returns:
        The mask, bool [G, O, K], True where a weight is pruned; and the updated weight, float32 [G, O, K].

    Source: SparseGPT (Frantar and Alistarh 2023), algorithm 1.

    Example:
        >>> weight, factor = np.array([[[3.0, 1.0]]], np.float32), inverse_factor(np.eye(2)[None])
        >>> prune(weight, factor, Pattern(), 1)[1].tolist()
        [[[3.0, 0.0]]]
    """
    columns = weight.shape[2]
    diagonal = np.einsum("gkk->gk", factor)
    left = weight.astype(np.float32)
    fixed = np.zeros(weight.shape, bool) if fixed is None else fixed
    whole = np.sqrt(np.einsum("gjk,gjk->gk", factor, factor))  # square roots of the diagonal of H^-1
    gone = np.zeros(weight.shape, bool)
    panel = max(_PANEL - _PANEL % pattern.width, pattern.width)
    panels = [slice(start, min(start + panel, columns)) for start in range(0, columns, panel)]
    counts = _counts(left, whole, fixed, pattern, count, panels)
    for here, few in zip(panels, counts, strict=True):
        start, end = here.start, here.stop
        part = _scores(left[:, :, here], diagonal[:, here], fixed[:, :, here])
        gone[:, :, here] = _lowest(part, pattern, few) | fixed[:, :, here]
        # Transposed, so that each step below reads contiguous memory instead of one value per cache line.
        turned = np.ascontiguousarray(left[:, :, here].transpose(0, 2, 1))
        going = np.ascontiguousarray(gone[:, :, here].transpose(0, 2, 1))
        errors = np.empty_like(turned)
        for j in range(end - start):
            off = np.where(going[:, j], turned[:, j], np.float32(0)) / diagonal[:, start + j, None]
            turned[:, j:] -= factor[:, start + j, start + j : end, None] * off[:, None]
            errors[:, j] = off
        left[:, :, here] = turned.transpose(0, 2, 1)
        errors = np.ascontiguousarray(errors.transpose(0, 2, 1))
        left[:, :, end:] -= errors @ factor[:, here, end:]
    left[gone] = 0
    return gone, left


def _counts(
    weight: Floats, diagonal: Floats, fixed: Mask, pattern: Pattern, count: int, panels: Sequence[slice]
) -> list[int]:
    """How many weights each panel of columns loses, by the scores of the whole layer before any weight is pruned.

    Of large layers, scores are compared to 8 bits of mantissa, so that those of a panel need not be kept.
    """
    if weight.nbytes > _AT_ONCE and pattern.width * pattern.rows == 1:
        parts = (_scores(weight[:, :, here], diagonal[:, here], fixed[:, :, here]) for here in panels)
        return lowest_in_each([histogram(np.maximum(part, 0)) for part in parts], count)
    first = _lowest(_scores(weight, diagonal, fixed), pattern, count)
    return [int(first[:, :, here].sum()) for here in panels]


def _lowest(scores: Floats, pattern: Pattern, count: int) -> Mask:
    return lowest_scores(scores.reshape(-1, scores.shape[2]), pattern, count).reshape(scores.shape)


def _scores(weight: Floats, diagonal: Floats, fixed: Mask) -> Floats:
    """The error of pruning each weight alone (OBS, eq. 3)."""
    return np.where(fixed, np.float32(-np.inf), (weight / diagonal[:, None]) ** 2)


def inverse_factor(moments: NDArray[np.floating]) -> Floats:
    """Return the upper Cholesky factor U of the inverse of the moments: U^T U = H^-1.

    Args:
        moments: second moments [G, K, K].

    Returns:
        float32 [G, K, K]. Row j distributes the error of column j to the columns behind it.

    Raises:
        numpy.linalg.LinAlgError: the moments are not positive definite.

    Example:
        >>> inverse_factor(4 * np.eye(2)[None]).tolist()
        [[[0.5, 0.0], [0.0, 0.5]]]
    """
    lower = np.linalg.cholesky(moments[:, ::-1, ::-1].astype(np.float64)).astype(np.float32)
    return np.ascontiguousarray(_inverse_of_lower(lower)[:, ::-1, ::-1])


def _inverse_of_lower(lower: Floats) -> Floats:
    """The inverse of lower triangular matrices [G, K, K], by halves: a sixth of the work of a general inverse."""
    size = lower.shape[-1]
    if size <= _BLOCK:
        return np.linalg.inv(lower)
    half = size // 2
    found = np.zeros_like(lower)
    first, last = _inverse_of_lower(lower[:, :half, :half]), _inverse_of_lower(lower[:, half:, half:])
    found[:, :half, :half], found[:, half:, half:] = first, last
    found[:, half:, :half] = -(last @ (lower[:, half:, :half] @ first))
    return found


def refit(target: Floats, moments: Floats, gone: Mask, start: Floats | None = None, steps: int = _STEPS) -> Floats:
    """Return the weights of least error tr((W - target) H (W - target)^T) among those with this mask.

    Args:
        target: the dense weight, float32 [G, O, K].
        moments: second moments H of the inputs [G, K, K].
        gone: True where a weight must be zero, bool [G, O, K].
        start: weights to start from, float32 [G, O, K]; None for the target.
        steps: iterations, at most.

    Returns:
        float32 [G, O, K].

    Example:
        >>> moments = np.array([[[2.0, 1.0], [1.0, 1.0]]], np.float32)
        >>> refit(np.ones((1, 1, 2), np.float32), moments, np.array([[[False, True]]])).tolist()
        [[[1.5, 0.0]]]
    """
    moments = moments.astype(np.float32)
    nothing = np.zeros((len(moments), 1, 1), np.float32)
    return solve(target @ moments, moments, nothing, gone, target if start is None else start, steps)


def solve(aim: Floats, moments: Floats, added: Floats, gone: Mask, start: Floats, steps: int = _STEPS) -> Floats:
    """Solve W (H + L) = aim for the weights that are not gone: the minimum of tr(W (H + L) W^T) - 2 tr(W aim^T).

    All rows are solved at once by conjugate gradients, projected onto the mask and preconditioned with the diagonal of
    H + L. No matrix is inverted. Several problems with the same H are solved together along leading axes S of aim and
    `added`.

    Args:
        aim: right-hand side, float32 [..., G, O, K].
        moments: H, second moments of the inputs, float32 [G, K, K].
        added: the diagonal of L, float32 [..., G, 1, K].
        gone: True where a weight must be zero, bool [G, O, K].
        start: weights to start from, float32 [..., G, O, K].
        steps: iterations, at most.

    Returns:
        W, float32 [..., G, O, K].

    Source: ALPS (Meng et al. 2024), algorithm 2.

    Example:
        >>> moments = np.array([[[2.0, 1.0], [1.0, 1.0]]], np.float32)
        >>> aim, nothing = np.array([[[3.0, 2.0]]], np.float32), np.zeros((1, 1, 2), np.float32)
        >>> solve(aim, moments, nothing, np.array([[[False, True]]]), np.zeros_like(aim)).tolist()
        [[[1.5, 0.0]]]
    """
    keep = (~gone).astype(np.float32)
    found = np.broadcast_to(start * keep, aim.shape).astype(np.float32)
    diagonal = np.einsum("gkk->gk", moments)[:, None]
    scale = (1 / np.maximum(diagonal + added, np.finfo(np.float32).tiny)).astype(np.float32)
    residual = aim - found @ moments
    if added.any():
        residual -= found * added
    else:
        added = np.zeros((), np.float32)
    residual *= keep
    direction = residual * scale
    power = np.einsum("...k,...k->...", residual, direction)
    enough, turned = _SMALL * power, np.empty_like(direction)
    left, rows = found, np.arange(0)  # `left`: the rows that are still solved; `rows`: where they are in `found`
    for _ in range(steps):
        unsolved = power > enough
        if not unsolved.any():
            break
        if len(aim) == 1 and aim.ndim == 3 and aim.size > _LARGE and unsolved.mean() < _FEW:
            picked = np.flatnonzero(unsolved[0])
            if len(rows):
                found[:, rows] = left
            rows = rows[picked] if len(rows) else picked
            left, residual, direction, keep = (a[:, picked] for a in (left, residual, direction, keep))
            power, enough, turned = power[:, picked], enough[:, picked], np.empty_like(direction)
        along = direction @ moments
        if added.ndim:
            along += np.multiply(direction, added, out=turned)
        along *= keep
        bend = np.einsum("...k,...k->...", direction, along)
        step = np.divide(power, bend, out=np.zeros_like(power), where=bend > 0)[..., None]
        left += np.multiply(step, direction, out=turned)
        along *= step
        residual -= along
        np.multiply(residual, scale, out=turned)
        before, power = power, np.einsum("...k,...k->...", residual, turned)
        ratio = np.divide(power, before, out=np.zeros_like(power), where=before > 0)
        direction *= ratio[..., None]
        direction += turned
    if len(rows):
        found[:, rows] = left
    found[np.broadcast_to(gone, found.shape)] = 0  # 0.0, not -0.0
    return found
