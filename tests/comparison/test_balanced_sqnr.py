"""Errors of candidates: each output by its own scale, and samples by what they hold."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.comparison.balanced_sqnr import CandidateError, Sums, balanced_db, joined, sums_of, worst_db

Arrays = dict[str, NDArray[np.float32]]
RNG = np.random.default_rng(0)


def sums(wanted: Arrays, got: Arrays) -> Sums:
    return sums_of(wanted, got, wanted)


def with_noise(wanted: Arrays, **shares: float) -> Arrays:
    """The outputs with noise of these shares of their root mean square."""
    found = {}
    for name, values in wanted.items():
        scale = shares.get(name, 0.0) * np.sqrt(np.mean(np.square(values)))
        found[name] = (values + scale * np.sign(np.cos(np.arange(values.size)).reshape(values.shape))).astype("f")
    return found


def loud_and_quiet(ratio: float) -> Arrays:
    values = {"loud": RNG.standard_normal((4, 64)), "quiet": RNG.standard_normal((2, 8)) / ratio}
    return {name: one.astype(np.float32) for name, one in values.items()}


def db(share: float) -> float:
    return float(-20 * np.log10(share))


@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e6])
def test_a_quiet_output_counts_as_much_as_a_loud_one(ratio: float) -> None:
    wanted = loud_and_quiet(ratio)
    bad, good = (sums(wanted, with_noise(wanted, loud=0.01, quiet=share)) for share in (0.7, 0.01))
    error = CandidateError((bad,))
    assert error.total.db > 25 or ratio == 1.0
    expected = -10 * np.log10((0.7**2 + 0.01**2) / 2)  # the mean of the outputs' shares of noise
    assert error.typical_db == pytest.approx(expected, abs=0.05)
    assert error.balanced_db == balanced_db(bad) == pytest.approx(expected, abs=0.05)
    assert error.worst_db == worst_db(bad) == pytest.approx(db(0.7), abs=0.05)
    assert CandidateError((good,)).worst_db == pytest.approx(db(0.01), abs=0.05)


def test_rounding_errors_of_a_loud_output_do_not_count() -> None:
    """An output that only rounding keeps from zero differs entirely, and says nothing."""
    wanted = loud_and_quiet(1e9)
    found = sums(wanted, with_noise(wanted, loud=0.01, quiet=3.0))
    assert worst_db(found) == pytest.approx(db(0.01), abs=0.05)
    assert balanced_db(found) == pytest.approx(db(0.01), abs=0.05)


def test_an_output_of_zeros_counts_relative_to_the_loudest() -> None:
    wanted = {"loud": loud_and_quiet(1.0)["loud"], "empty": np.zeros((2, 8), np.float32)}
    small, large = ({**wanted, "empty": np.full((2, 8), size, np.float32)} for size in (1e-3, 1.0))
    assert balanced_db(sums(wanted, small)) > 55
    assert balanced_db(sums(wanted, large)) < 3
    assert worst_db(sums(wanted, small)) > 55


def test_noise_without_any_signal_is_the_worst() -> None:
    nothing = {"y": np.zeros((1, 4), np.float32)}
    assert balanced_db(sums(nothing, {"y": np.ones((1, 4), np.float32)})) == -200.0
    assert balanced_db(sums(nothing, nothing)) == 200.0


def test_almost_silent_samples_do_not_vote() -> None:
    """Sample weights are shares of the loudest sample's root mean square; below one step of 8 bits they are 0."""
    loud = RNG.standard_normal((1, 32)).astype(np.float32)
    samples = [{"y": loud * np.float32(scale)} for scale in (1.0, 0.1, 1 / 100, 1 / 150, 3e-6)]
    shares = (0.1, 0.1, 0.1, 5.0, 5.0)
    errors = [sums(one, with_noise(one, y=share)) for one, share in zip(samples, shares, strict=True)]
    found = CandidateError(tuple(errors))
    np.testing.assert_allclose(found.weights, [1.0, 0.1, 0.01, 0.0, 0.0], rtol=1e-4)
    assert found.typical_db == pytest.approx(20.0, abs=0.01)


def test_constant_outputs_do_not_make_samples_louder() -> None:
    """Anchors are the same on all samples: a sample without anything else holds nothing."""
    anchors = np.arange(8, dtype=np.float32).reshape(2, 4)
    held = [1.0, 1.0, 1e-4]
    samples = [{"scores": RNG.random((1, 16)).astype(np.float32) * np.float32(s), "anchors": anchors} for s in held]
    found = CandidateError(tuple(sums(one, with_noise(one, scores=0.1)) for one in samples))
    assert found.weights[2] == 0.0
    assert found.typical_db == pytest.approx(20.0, abs=0.01)
    moved = CandidateError(tuple(sums(one, with_noise(one, scores=0.1, anchors=0.1)) for one in samples))
    assert moved.typical_db < found.typical_db - 1  # their error counts


def test_samples_alike_all_vote() -> None:
    one = {"y": np.ones((1, 4), np.float32)}
    found = CandidateError(tuple(sums(one, with_noise(one, y=share)) for share in (0.1, 0.2)))
    np.testing.assert_array_equal(found.weights, [1.0, 1.0])
    np.testing.assert_allclose(found.each_db, [20.0, db(0.2)], atol=0.01)


def test_sums_over_samples_are_those_of_all_values() -> None:
    samples = [loud_and_quiet(10.0) for _ in range(3)]
    noisy = [with_noise(one, loud=0.2, quiet=0.1) for one in samples]
    found = joined(sums(one, other) for one, other in zip(samples, noisy, strict=True))
    for name in ("loud", "quiet"):
        ref, got = (np.stack([one[name] for one in side]).astype(np.float64) for side in (samples, noisy))
        assert found[name].db == pytest.approx(10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum()), abs=1e-3)
