"""Pruned and refitted weights, compared with numpy's least squares and with exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths import optimal_brain_surgeon as obs
from onnxshot.maths.pruning_masks import Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments


def problem(
    groups: int, outputs: int, inputs: int, rows: int = 400, seed: int = 0, alike: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(weight [G, O, K], correlated inputs [G, N, K], their damped second moments)."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, outputs, inputs)).astype(np.float32)
    mixed = alike * rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + 0.5 * np.eye(inputs)
    x = (rng.standard_normal((groups, rows, inputs)) @ mixed).astype(np.float32)
    moments = (x.transpose(0, 2, 1) @ x).astype(np.float32) + np.eye(inputs, dtype=np.float32)
    return weight, x, moments


def best_of_row(row: NDArray[np.float32], moments: NDArray[np.float32], keep: tuple[int, ...]) -> NDArray[np.float64]:
    """Least squares with these columns alone, by numpy."""
    at = list(keep)
    found = np.zeros(len(row))
    if at:
        wide = moments.astype(np.float64)
        found[at] = np.linalg.solve(wide[np.ix_(at, at)], wide[at] @ row)
    return found


@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x1", "block:1x4"])
@pytest.mark.parametrize("shape", [(1, 16, 96), (3, 4, 24), (8, 1, 12)])
def test_updates_are_never_worse_than_magnitude(text: str, shape: tuple[int, int, int]) -> None:
    weight, _, moments = problem(*shape)
    pattern, count = Pattern.parse(text), weight.size // 2
    gone, updated = obs.prune(weight, obs.inverse_factor(moments), pattern, count)
    fitted = obs.prune_and_refit(weight, moments, pattern, count, np.zeros(shape, bool))
    plain = lowest_scores(np.square(weight).reshape(-1, shape[2]), pattern, count).reshape(shape)
    errors = [obs.error(w, weight, moments) for w in (fitted, updated, np.where(plain, np.float32(0), weight))]
    assert errors[0] <= errors[1] * 1.0001
    assert errors[0] < errors[2]
    assert (fitted == 0).sum() >= gone.sum()
    if text != "block:2x1" or shape[0] * shape[1] % 2 == 0:
        assert gone.sum() == count


def test_masks_are_close_to_those_of_exhaustive_search() -> None:
    ratios = []
    for seed in range(20):
        weight, _, moments = problem(1, 1, 8, seed=seed, alike=0.3)
        every = []
        for keep in combinations(range(8), 4):
            found = best_of_row(weight[0, 0], moments[0], keep).astype(np.float32)
            every.append(obs.error(found[None, None], weight, moments))
        fitted = obs.prune_and_refit(weight, moments, Pattern(), 4, np.zeros(weight.shape, bool))
        ratios.append(obs.error(fitted, weight, moments) / min(every))
        assert ratios[-1] < np.median(every) / min(every)
    assert min(ratios) >= 0.99, "nothing is better than the best of all"
    assert np.median(ratios) < 1.5


@pytest.mark.parametrize("groups", [1, 5])
def test_refit_is_least_squares_on_the_remaining_weights(groups: int) -> None:
    weight, _, moments = problem(groups, 6, 14)
    gone = np.random.default_rng(1).random(weight.shape) < 0.5
    gone[0, 0] = True  # nothing is left of one output
    found = obs.refit(weight, moments, gone)
    for g in range(groups):
        for o in range(6):
            keep = tuple(np.flatnonzero(~gone[g, o]))
            expected = best_of_row(weight[g, o], moments[g], keep)
            np.testing.assert_allclose(found[g, o], expected, rtol=0.02, atol=0.02)
    assert (found[gone] == 0).all()


def test_fixed_weights_are_pruned_and_counted() -> None:
    weight, _, moments = problem(1, 10, 100)
    fixed = np.random.default_rng(2).random(weight.shape) < 0.3
    gone, updated = obs.prune(weight, obs.inverse_factor(moments), Pattern(), 500, fixed)
    assert gone[fixed].all()
    assert gone.sum() == 500
    assert (updated[fixed] == 0).all()


def test_groups_of_a_pruned_layer_are_independent() -> None:
    weight, _, moments = problem(4, 3, 9)
    gone = np.random.default_rng(3).random(weight.shape) < 0.4
    whole = obs.refit(weight, moments, gone)
    for g in range(4):
        alone = obs.refit(weight[g : g + 1], moments[g : g + 1], gone[g : g + 1])
        np.testing.assert_allclose(whole[g : g + 1], alone, rtol=1e-3, atol=1e-4)


def test_an_input_that_is_always_zero_is_harmless() -> None:
    weight, x, _ = problem(3, 2, 6)
    x[1] = 0
    x[0, :, 2] = 0
    moments = Moments.of(x, x @ weight.transpose(0, 2, 1))
    damped = moments.damped(0.01)
    gone, start = obs.prune(weight, obs.inverse_factor(damped), Pattern(), 18)
    assert np.isfinite(obs.refit(weight, damped.astype(np.float32), gone, start)).all()
    assert gone.sum() == 18


def test_problems_with_one_matrix_are_solved_together() -> None:
    """Each with a diagonal and a right-hand side of its own, as numpy solves it on the remaining weights."""
    rng = np.random.default_rng(5)
    weight, _, moments = problem(2, 4, 10)
    gone = rng.random(weight.shape) < 0.4
    aims = 100 * rng.standard_normal((3, *weight.shape)).astype(np.float32)
    added = np.abs(rng.standard_normal((3, 2, 1, 10))).astype(np.float32) * 100
    found = obs.solve(aims, moments, added, gone, np.zeros_like(weight))
    for s, g, o in np.ndindex(3, 2, 4):
        at = np.flatnonzero(~gone[g, o])
        matrix = (moments[g] + np.diag(added[s, g, 0])).astype(np.float64)[np.ix_(at, at)]
        wanted = np.linalg.solve(matrix, aims[s, g, o, at])
        np.testing.assert_allclose(found[s, g, o, at], wanted, atol=0.01 * np.abs(wanted).max())
    assert (found[:, gone] == 0).all()


def test_rows_that_converge_early_are_as_good_as_those_that_take_long() -> None:
    weight, x, _ = problem(1, 300, 256)
    moments = (x.transpose(0, 2, 1) @ x + 1e-2 * np.eye(256)).astype(np.float32)
    gone = np.random.default_rng(6).random(weight.shape) < 0.5
    start = np.where(gone, np.float32(0), weight)
    for row in range(200):  # these start where they end
        start[0, row] = best_of_row(weight[0, row], moments[0], tuple(np.flatnonzero(~gone[0, row])))
    found = obs.refit(weight, moments, gone, start)
    for row in (0, 199, 200, 299):
        best = best_of_row(weight[0, row], moments[0], tuple(np.flatnonzero(~gone[0, row]))).astype(np.float32)
        errors = [obs.error(w[None, None], weight[:, row : row + 1], moments) for w in (found[0, row], best)]
        assert errors[0] <= errors[1] * 1.02


@pytest.mark.parametrize("size", [1, 127, 128, 129, 300])
def test_the_factor_is_that_of_the_inverse(size: int) -> None:
    _, _, moments = problem(2, 1, size, rows=2 * size + 8)
    factor = obs.inverse_factor(moments).astype(np.float64)
    assert (np.tril(factor, -1) == 0).all()
    inverse = factor.transpose(0, 2, 1) @ factor
    np.testing.assert_allclose(inverse @ moments, np.broadcast_to(np.eye(size), moments.shape), atol=2e-3)
