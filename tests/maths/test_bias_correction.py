"""Empirical bias correction: exact shifts, means after an activation, and shrinkage of noisy means."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths.bias_correction import corrected_bias

Floats = NDArray[np.float64]


def no_activation(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values


def hard_swish(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values * np.clip(values / 6 + np.float32(0.5), 0, 1)


def clip(low: float, high: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda values: np.clip(values, low, high)


def samples(rng: np.random.Generator, count: int, rows: int, outputs: int) -> tuple[NDArray[np.float32], list[int]]:
    """Values [count * rows, outputs] and the row every sample begins with."""
    return rng.standard_normal((count * rows, outputs)).astype(np.float32), list(range(0, count * rows, rows))


def test_a_constant_shift_is_corrected_exactly() -> None:
    rng = np.random.default_rng(0)
    got, starts = samples(rng, 8, 50, 4)
    bias, shift = np.asarray([0.5, -1, 0, 2], np.float32), np.asarray([0.25, -0.5, 1, 0], np.float32)
    found = corrected_bias(got + bias + shift, got, bias, no_activation, np.asarray(starts))
    np.testing.assert_allclose(found, bias + shift, atol=1e-5)


def test_samples_of_different_lengths_have_equal_weight() -> None:
    """The mean is over samples, not rows: for errors of 1 and 3 it is 2, whatever the numbers of rows."""
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
def test_the_mean_after_the_activation_is_corrected(
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


def test_errors_that_only_vary_between_samples_are_not_corrected() -> None:
    rng = np.random.default_rng(2)
    got, starts = samples(rng, 10, 20, 3)
    alternating = np.repeat(np.tile([1.0, -1.0], 5), 20)[:, None] * np.asarray([0.5, 2.0, 0.01])
    uneven = alternating + np.asarray([0.1, 0.4, 0.002])  # a mean that is less than the accident of ten samples
    bias = np.asarray([1, 2, 3], np.float32)
    for errors in (alternating, uneven):
        wanted = (got + bias + errors).astype(np.float32)
        found = corrected_bias(wanted, got, bias, no_activation, np.asarray(starts))
        np.testing.assert_allclose(found, bias, atol=1e-6)


def test_a_noisy_mean_is_shrunk_by_james_stein() -> None:
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


def test_the_mean_of_one_sample_is_corrected_fully() -> None:
    got = np.linspace(-1, 1, 30, dtype=np.float32)[:, None]
    found = corrected_bias(got + np.float32(0.5), got, np.zeros(1, np.float32), no_activation, np.asarray([0]))
    np.testing.assert_allclose(found, [0.5], atol=1e-6)


def test_exact_and_fully_clipped_channels_are_not_changed() -> None:
    got = np.full((40, 2), -5.0, np.float32)
    got[:, 1] = 1.0
    bias = np.asarray([0.25, 0.5], np.float32)
    wanted = got + bias
    wanted[:, 0] -= 3.0  # behind the Relu both are zero
    found = corrected_bias(wanted, got, bias, clip(0.0, np.inf), np.arange(0, 40, 10))
    np.testing.assert_array_equal(found, bias)
