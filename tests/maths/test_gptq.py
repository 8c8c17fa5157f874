"""GPTQ rounding compared with rounding to nearest and with exhaustive search."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.maths import gptq
from onnxshot.maths.gptq import round_weights

Floats = NDArray[np.float64]
WIDE = (-127, 127)


def correlated(rng: np.random.Generator, columns: int, rows: int = 400) -> Floats:
    """Correlated inputs [rows, columns] of different magnitude."""
    factors = rng.standard_normal((rows, max(1, columns // 3))) @ rng.standard_normal((max(1, columns // 3), columns))
    return (factors + 0.3 * rng.standard_normal((rows, columns))) * np.exp(rng.uniform(-1, 1, columns))


def moments_of(x: Floats) -> Floats:
    return (x.T @ x / len(x))[None]


def error(weight: Floats, q: Floats, scale: Floats, moments: Floats) -> Floats:
    """E[((w - scale * q) x)**2] of every output [G, O]."""
    left = weight - q * scale[:, :, None]
    return np.einsum("goi,gij,goj->go", left, moments, left)


def nearest(weight: Floats, scale: Floats, limits: tuple[int, int] = WIDE) -> Floats:
    return np.clip(np.rint(weight / scale[:, :, None]), *limits)


@settings(max_examples=40)
@given(st.integers(2, 90), st.integers(0, 2**32 - 1))
def test_outputs_change_less_than_by_rounding_to_nearest(columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((1, 16, columns))
    scale = np.abs(weight).max(axis=2) / 7  # coarse, so that there is much to gain
    moments = moments_of(correlated(rng, columns))
    q = round_weights(weight, moments, scale, (-7, 7))
    assert q.shape == weight.shape
    assert (q == np.rint(q)).all()
    assert (np.abs(q) <= 7).all()
    # Greedy, and damped, so that single outputs may lose; their sum does not.
    plain = error(weight, nearest(weight, scale), scale, moments).sum()
    assert error(weight, q, scale, moments).sum() <= plain * (1.05 if columns < 6 else 1.0)


def test_the_gain_is_large_for_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 32, 64))
    scale = np.abs(weight).max(axis=2) / 7
    moments = moments_of(correlated(rng, 64))
    found = error(weight, round_weights(weight, moments, scale, WIDE), scale, moments).sum()
    assert found < 0.4 * error(weight, nearest(weight, scale), scale, moments).sum()


@pytest.mark.parametrize("columns", [1, 5, 64, 65, 130])
def test_uncorrelated_inputs_are_rounded_to_nearest(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((2, 3, columns))
    scale = np.abs(weight).max(axis=2) / rng.uniform(3, 127, (2, 3))
    moments = np.stack([np.diag(rng.uniform(0.1, 9, columns)) for _ in range(2)])
    np.testing.assert_array_equal(round_weights(weight, moments, scale, WIDE), nearest(weight, scale))


def test_limits_hold_for_any_error_to_compensate() -> None:
    rng = np.random.default_rng(3)
    weight = rng.uniform(-1, 1, (1, 8, 40))
    x = np.repeat(rng.standard_normal((200, 1)), 40, axis=1) + 0.01 * rng.standard_normal((200, 40))
    scale = np.full((1, 8), 1 / 4)
    free = round_weights(weight, moments_of(x), scale, WIDE)
    held = round_weights(weight, moments_of(x), scale, (-2, 3))
    assert np.abs(free).max() > 3
    assert (held.min(), held.max()) == (-2, 3)


def test_one_input() -> None:
    weight = np.asarray([[[0.49], [-1.51], [2.0]]])
    q = round_weights(weight, np.ones((1, 1, 1)), np.ones((1, 3)), WIDE)
    assert q.tolist() == [[[0], [-2], [2]]]


def test_inputs_that_are_always_zero_do_not_break_the_others() -> None:
    rng = np.random.default_rng(4)
    x = correlated(rng, 12)
    x[:, [0, 5, 11]] = 0.0
    weight = rng.standard_normal((1, 6, 12))
    scale = np.abs(weight).max(axis=2) / 7
    q = round_weights(weight, moments_of(x), scale, WIDE)
    np.testing.assert_array_equal(q[:, :, [0, 5, 11]], nearest(weight, scale)[:, :, [0, 5, 11]])
    alive = [i for i in range(12) if i not in (0, 5, 11)]
    moments = moments_of(x)
    assert error(weight, q, scale, moments).sum() < error(weight, nearest(weight, scale), scale, moments).sum()
    assert np.isfinite(q[:, :, alive]).all()
    silent = round_weights(weight, np.zeros((1, 12, 12)), scale, WIDE)
    np.testing.assert_array_equal(silent, nearest(weight, scale))


def test_zeros_stay_zeros_and_other_weights_compensate() -> None:
    rng = np.random.default_rng(9)
    x = correlated(rng, 24)
    weight = rng.standard_normal((1, 6, 24)) * (rng.random((1, 6, 24)) < 0.5)
    scale, moments = np.abs(weight).max(axis=2) / 7, moments_of(x)
    q = round_weights(weight, moments, scale, WIDE)
    assert (q[weight == 0] == 0).all()
    assert error(weight, q, scale, moments).sum() < 0.7 * error(weight, nearest(weight, scale), scale, moments).sum()


def test_groups_are_independent() -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((4, 3, 9))
    scale = np.abs(weight).max(axis=2) / 7
    moments = np.concatenate([moments_of(correlated(rng, 9)) for _ in range(4)])
    together = round_weights(weight, moments, scale, WIDE)
    for g in range(4):
        alone = round_weights(weight[g : g + 1], moments[g : g + 1], scale[g : g + 1], WIDE)
        np.testing.assert_array_equal(together[g : g + 1], alone)


def test_the_order_of_the_inputs_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    weight, x = rng.standard_normal((1, 5, 80)), correlated(rng, 80)
    scale, order = np.abs(weight).max(axis=2) / 7, rng.permutation(80)
    q = round_weights(weight, moments_of(x), scale, WIDE)
    turned = round_weights(weight[:, :, order], moments_of(x[:, order]), scale, WIDE)
    np.testing.assert_array_equal(turned, q[:, :, order])


def test_errors_are_compensated_across_blocks_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    weight, moments = rng.standard_normal((2, 4, 150)), np.concatenate([moments_of(correlated(rng, 150))] * 2)
    scale = np.abs(weight).max(axis=2) / 7
    found = []
    for block in (64, 1, 1000):
        monkeypatch.setattr(gptq, "_BLOCK", block)
        found.append(round_weights(weight, moments, scale, WIDE))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_error_is_close_to_that_of_exhaustive_search() -> None:
    """Exhaustive search: every combination of -2..2 for up to four inputs."""
    rng = np.random.default_rng(7)
    best = found = plain = 0.0
    for columns in (2, 3, 4) * 8:
        moments = moments_of(correlated(rng, columns))
        weight = rng.uniform(-2, 2, (1, 1, columns))
        scale = np.ones((1, 1))
        every = np.asarray(list(itertools.product(range(-2, 3), repeat=columns)), np.float64)[:, None, :]
        errors = [float(error(weight, q[None], scale, moments)[0, 0]) for q in every]
        best += min(errors)
        found += float(error(weight, round_weights(weight, moments, scale, (-2, 2)), scale, moments)[0, 0])
        plain += float(error(weight, nearest(weight, scale, (-2, 2)), scale, moments)[0, 0])
    assert best <= found
    assert found - best < 0.5 * (plain - best)
