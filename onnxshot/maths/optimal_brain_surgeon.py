"""Take weights out of a layer so that its outputs change least: masks by second order, and the best of what is left.

The layer's error is tr((W - W*) H (W - W*)^T), with H the second moments of what it reads, damped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores

Floats = NDArray[np.float32]

_PANEL = 64  # columns whose error is spread beyond themselves at once: SparseGPT, section 3.4 (its blocks of 128)
_STEPS = 60  # of conjugate gradients, at most
_SMALL = 1e-5  # of the first residual: nothing more is to be won


def error(weight: Floats, target: Floats, moments: Floats) -> float:
    """tr((weight - target) moments (weight - target)^T), summed over groups. [G, O, K], [G, O, K], [G, K, K]."""
    off = (weight - target).astype(np.float32)
    return float(np.einsum("gok,gok->", off @ moments.astype(np.float32), off, dtype=np.float64))


def prune_and_refit(target: Floats, moments: Floats, pattern: Pattern, count: int, fixed: Mask) -> Floats:
    """The target with `count` weights gone and the others fitted anew. [G, O, K], [G, K, K] -> [G, O, K].

    Never worse than to take the smallest weights out, by the error on these moments, which must be positive definite.
    """
    if not count:
        return refit(target, moments, fixed) if fixed.any() else target
    gone, start = prune(target, inverse_factor(moments), pattern, count, fixed)
    found = refit(target, moments, gone, start)
    smallest = _lowest(np.where(fixed, np.float32(-np.inf), np.square(target)), pattern, count) | fixed
    if error(np.where(smallest, np.float32(0), target), target, moments) < error(found, target, moments):
        return refit(target, moments, smallest)
    return found


def prune(
    weight: Floats, factor: Floats, pattern: Pattern, count: int, fixed: Mask | None = None
) -> tuple[Mask, Floats]:
    """(True where weights go, the others updated) so that the error is small. [G, O, K], [G, K, K] -> [G, O, K] twice.

    SparseGPT (Frantar and Alistarh 2023), algorithm 1: columns from left to right; the error of each is made up for by
    those to its right (OBS, eq. 3), and a panel's mask is chosen by w^2 / [H^-1]_jj as the weights are by then. Unlike
    there, how many go of each panel is what scores over the whole layer say before anything went.

    factor: `inverse_factor` of the moments; G groups have nothing in common but the count. count: how many go, see
    `masks.lowest`. fixed: weights that go in any case.
    """
    columns = weight.shape[2]
    diagonal = np.einsum("gkk->gk", factor)
    left = weight.astype(np.float32)
    fixed = np.zeros(weight.shape, bool) if fixed is None else fixed
    whole = np.sqrt(np.einsum("gjk,gjk->gk", factor, factor))  # of the inverse's diagonal
    first = _lowest(_scores(left, whole, fixed), pattern, count)
    gone = np.zeros(weight.shape, bool)
    panel = max(_PANEL - _PANEL % pattern.width, pattern.width)
    for start in range(0, columns, panel):
        end = min(start + panel, columns)
        here = slice(start, end)
        part = _scores(left[:, :, here], diagonal[:, here], fixed[:, :, here])
        gone[:, :, here] = _lowest(part, pattern, int(first[:, :, here].sum())) | fixed[:, :, here]
        # Rows are columns here: a column of a wide weight is read one value of a cache line at a time.
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
    return gone, np.where(gone, np.float32(0), left)


def _lowest(scores: Floats, pattern: Pattern, count: int) -> Mask:
    return lowest_scores(scores.reshape(-1, scores.shape[2]), pattern, count).reshape(scores.shape)


def _scores(weight: Floats, diagonal: Floats, fixed: Mask) -> Floats:
    """OBS, eq. 3: what it costs to take each weight out alone."""
    return np.where(fixed, np.float32(-np.inf), (weight / diagonal[:, None]) ** 2)


def inverse_factor(moments: NDArray[np.floating]) -> Floats:
    """Upper triangular U with U^T U the inverse of the moments [G, K, K]: row j spreads the error of column j.

    Raises LinAlgError where the moments are not positive definite.
    """
    lower = np.linalg.cholesky(moments[:, ::-1, ::-1].astype(np.float64)).astype(np.float32)
    return np.ascontiguousarray(np.linalg.inv(lower)[:, ::-1, ::-1])


def refit(target: Floats, moments: Floats, gone: Mask, start: Floats | None = None, steps: int = _STEPS) -> Floats:
    """The weights of least tr((W - target) H (W - target)^T) among those that are zero where `gone`. [G, O, K].

    All rows at once by conjugate gradients with the diagonal as preconditioner, each projected onto its mask (as in
    ALPS, Meng et al. 2024, algorithm 2): no matrix is inverted for any of them. moments: [G, K, K]. start: weights to
    begin with.
    """
    moments = moments.astype(np.float32)
    keep = (~gone).astype(np.float32)
    found = ((target if start is None else start) * keep).astype(np.float32)
    scale = 1 / np.maximum(np.einsum("gkk->gk", moments), np.finfo(np.float32).tiny)[:, None]
    residual = ((target - found) @ moments).astype(np.float32) * keep
    direction = residual * scale
    power = np.einsum("gok,gok->go", residual, direction)
    enough, turned = _SMALL * power, np.empty_like(direction)
    for _ in range(steps):
        if (power <= enough).all():
            break
        along = direction @ moments
        along *= keep
        bend = np.einsum("gok,gok->go", direction, along)
        step = np.divide(power, bend, out=np.zeros_like(power), where=bend > 0)
        found += np.multiply(step[:, :, None], direction, out=turned)
        along *= step[:, :, None]
        residual -= along
        np.multiply(residual, scale, out=turned)
        before, power = power, np.einsum("gok,gok->go", residual, turned)
        ratio = np.divide(power, before, out=np.zeros_like(power), where=before > 0)
        direction *= ratio[:, :, None]
        direction += turned
    return np.where(gone, np.float32(0), found)  # no zero is negative
