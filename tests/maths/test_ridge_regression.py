"""Ridge regression compared with numpy's least squares, and the strength chosen on held-out rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths.ridge_regression import Moments, best_strength, change, ridge

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


def rows(seed: int, count: int = 50) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(weight [2, 3, 7], inputs [2, N, 7], unrelated outputs [2, N, 3])."""
    rng = np.random.default_rng(seed)
    shapes = (2, 3, 7), (2, count, 7), (2, count, 3)
    weight, x, y = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return weight, x @ rng.standard_normal((2, 7, 7)).astype(np.float32), y


def test_ridge_equals_numpys_least_squares() -> None:
    weight, x, y = rows(4)
    moments = Moments.of(x, y)
    found = ridge(moments, weight, 0.1)
    for g in range(2):
        diagonal = np.diagonal(x[g].T @ x[g])
        root = np.diag(np.sqrt(0.1 * (diagonal + 0.01 * diagonal.mean())))
        # (Y X^T + W0 L) (X X^T + L)^-1 is least squares with rows added: the root of L wants what W0 makes of it
        given, wanted = np.concatenate([x[g], root]), np.concatenate([y[g], root @ weight[g].T])
        np.testing.assert_allclose(found[g].T, np.linalg.lstsq(given, wanted, rcond=None)[0], rtol=1e-3, atol=1e-4)
    before, after = (float(((y - x @ w.transpose(0, 2, 1)) ** 2).sum()) for w in (weight, found))
    assert change(moments, weight, found) == pytest.approx(after - before, rel=1e-3)


def test_moments_of_parts_add_up() -> None:
    _, x, y = rows(5)
    both, whole = Moments.of(x[:, :20], y[:, :20]) + Moments.of(x[:, 20:], y[:, 20:]), Moments.of(x, y)
    np.testing.assert_allclose(both.xx, whole.xx, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(both.yx, whole.yx, rtol=1e-4, atol=1e-3)


def test_the_strength_is_chosen_on_held_out_rows() -> None:
    weight, x, noise = rows(6, 400)
    clean = x @ weight.transpose(0, 2, 1)
    nothing = np.zeros_like(weight)
    learn, check = Moments.of(x[:, :200], clean[:, :200]), Moments.of(x[:, 200:], clean[:, 200:])
    assert best_strength(learn, check, nothing, STRENGTHS) == STRENGTHS[0]
    few = Moments.of(x[:, :10], (clean + 10 * noise)[:, :10])
    found = best_strength(few, check, nothing, STRENGTHS)
    errors = [change(check, nothing, ridge(few, nothing, strength)) for strength in STRENGTHS]
    assert found == (STRENGTHS[int(np.argmin(errors))] if min(errors) < 0 else None)
    silent = Moments.of(x[:, 200:], np.zeros_like(clean[:, 200:]))
    assert best_strength(few, silent, nothing, STRENGTHS) is None
