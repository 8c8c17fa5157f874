"""Rounding by what it does to the outputs, and biases that take up a mean error."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.maths import gptq
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.gptq import round_weights

Floats = NDArray[np.float64]
WIDE = (-127, 127)


def no_activation(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values


def hard_swish(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values * np.clip(values / 6 + np.float32(0.5), 0, 1)


def clip(low: float, high: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda values: np.clip(values, low, high)


def correlated(rng: np.random.Generator, columns: int, rows: int = 400) -> Floats:
    """Inputs [rows, columns] that share a few factors, of different loudness."""
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


def test_the_gain_is_large_where_inputs_are_alike() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 32, 64))
    scale = np.abs(weight).max(axis=2) / 7
    moments = moments_of(correlated(rng, 64))
    found = error(weight, round_weights(weight, moments, scale, WIDE), scale, moments).sum()
    assert found < 0.4 * error(weight, nearest(weight, scale), scale, moments).sum()


@pytest.mark.parametrize("columns", [1, 5, 64, 65, 130])
def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((2, 3, columns))
    scale = np.abs(weight).max(axis=2) / rng.uniform(3, 127, (2, 3))
    moments = np.stack([np.diag(rng.uniform(0.1, 9, columns)) for _ in range(2)])
    np.testing.assert_array_equal(round_weights(weight, moments, scale, WIDE), nearest(weight, scale))


def test_limits_hold_however_much_there_is_to_make_up_for() -> None:
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


def test_zeros_stay_zeros_and_the_others_make_up_for_it() -> None:
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


def test_errors_are_spread_beyond_a_block_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    weight, moments = rng.standard_normal((2, 4, 150)), np.concatenate([moments_of(correlated(rng, 150))] * 2)
    scale = np.abs(weight).max(axis=2) / 7
    found = []
    for block in (64, 1, 1000):
        monkeypatch.setattr(gptq, "_BLOCK", block)
        found.append(round_weights(weight, moments, scale, WIDE))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_it_comes_near_the_best_of_all_choices() -> None:
    """Against every combination of -2..2 of up to four inputs."""
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


# ---------------------------------------------------------------------------- biases


def samples(rng: np.random.Generator, count: int, rows: int, outputs: int) -> tuple[NDArray[np.float32], list[int]]:
    """Values [count * rows, outputs] and the row every sample begins with."""
    return rng.standard_normal((count * rows, outputs)).astype(np.float32), list(range(0, count * rows, rows))


def test_a_shift_is_taken_up_to_the_bit_without_an_activation() -> None:
    rng = np.random.default_rng(0)
    got, starts = samples(rng, 8, 50, 4)
    bias, shift = np.asarray([0.5, -1, 0, 2], np.float32), np.asarray([0.25, -0.5, 1, 0], np.float32)
    found = corrected_bias(got + bias + shift, got, bias, no_activation, np.asarray(starts))
    np.testing.assert_allclose(found, bias + shift, atol=1e-5)


def test_samples_of_different_lengths_weigh_alike() -> None:
    """The mean over samples, not over rows: of errors 1 and 3 it is 2, however many rows have which."""
    got = np.zeros((110, 1), np.float32)
    wanted = np.concatenate([np.full((100, 1), 3.0), np.full((10, 1), 1.0)]).astype(np.float32)
    found = corrected_bias(wanted, got, np.zeros(1, np.float32), no_activation, np.asarray([0, 100]))
    mean, accident = 2.0, 1.0  # variance of the mean: 1 over two samples less one
    expected, step = 0.0, 0.0
    for _ in range(3):
        left = mean - expected
        step = max(1 - accident / left**2, 0.0) * left
        expected += step
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert 0 < found[0] < mean


@pytest.mark.parametrize("activation", [clip(0.0, np.inf), clip(0.0, 1.0), clip(-1.0, 1.0), hard_swish, np.tanh])
def test_the_mean_behind_the_activation_is_brought_back(
    activation: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    rng = np.random.default_rng(1)
    got, starts = samples(rng, 16, 500, 6)
    bias = rng.uniform(-0.5, 0.5, 6).astype(np.float32)
    wanted = got + bias
    # The quantized layer has lost a share of every output, and carries noise that the activation rectifies.
    lossy = (got - np.linspace(-0.3, 0.3, 6) + 0.3 * rng.standard_normal(got.shape)).astype(np.float32)
    found = corrected_bias(wanted, lossy, bias, activation, np.asarray(starts))

    def off(b: NDArray[np.floating]) -> Floats:
        return np.abs((activation(wanted) - activation((lossy + b).astype(np.float32))).mean(axis=0, dtype=np.float64))

    assert (off(found) < 0.01).all()
    assert off(bias).max() > 0.1


def test_errors_that_differ_from_sample_to_sample_only_are_left() -> None:
    rng = np.random.default_rng(2)
    got, starts = samples(rng, 10, 20, 3)
    alternating = np.repeat(np.tile([1.0, -1.0], 5), 20)[:, None] * np.asarray([0.5, 2.0, 0.01])
    uneven = alternating + np.asarray([0.1, 0.4, 0.002])  # a mean that is less than the accident of ten samples
    bias = np.asarray([1, 2, 3], np.float32)
    for errors in (alternating, uneven):
        wanted = (got + bias + errors).astype(np.float32)
        found = corrected_bias(wanted, got, bias, no_activation, np.asarray(starts))
        np.testing.assert_allclose(found, bias, atol=1e-6)


def test_of_a_mean_among_accidents_a_share_is_corrected() -> None:
    """James and Stein 1961, positive part: 1 - accident / mean**2 of it, at every step."""
    errors = np.asarray([1.0, 3.0, 2.0, 2.0])
    got = np.zeros((4, 1), np.float32)
    found = corrected_bias(
        errors[:, None].astype(np.float32), got, np.zeros(1, np.float32), no_activation, np.arange(4)
    )  # fmt: skip
    accident = errors.var() / 3
    expected = 0.0
    for _ in range(3):
        left = errors.mean() - expected
        expected += max(1 - accident / left**2, 0.0) * left
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert 0.8 * 2 < found[0] < 2


def test_one_sample_is_believed() -> None:
    got = np.linspace(-1, 1, 30, dtype=np.float32)[:, None]
    found = corrected_bias(got + np.float32(0.5), got, np.zeros(1, np.float32), no_activation, np.asarray([0]))
    np.testing.assert_allclose(found, [0.5], atol=1e-6)


def test_what_is_right_or_cut_off_altogether_is_left() -> None:
    got = np.full((40, 2), -5.0, np.float32)
    got[:, 1] = 1.0
    bias = np.asarray([0.25, 0.5], np.float32)
    wanted = got + bias
    wanted[:, 0] -= 3.0  # behind the Relu both are zero
    found = corrected_bias(wanted, got, bias, clip(0.0, np.inf), np.arange(0, 40, 10))
    np.testing.assert_array_equal(found, bias)
