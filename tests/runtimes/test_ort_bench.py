"""Latency figures are consistent, and say if the runs do not show which of two models is faster."""

from pathlib import Path

import numpy as np
import pytest

from onnxshot.runtimes.ort_bench import Latency, is_sure

RNG = np.random.default_rng(0)


def test_the_times_have_the_reported_ratio() -> None:
    first = Latency(Path("a"), 0.6795, 0.5, 0.9, 1.0, 30)
    told = Latency(Path("b"), 0.6976, 0.5, 0.9, 1.1376, 30, sure=False).against(first)
    assert told["float_ms"] / told["ms"] == pytest.approx(told["speedup"]) == pytest.approx(1.1376)
    assert told["float_ms"] == 0.6795
    assert told["sure"] is False


@pytest.mark.parametrize(("factor", "scatter", "sure"), [
    (0.5, 0.05, True), (2.0, 0.05, True), (1.0, 0.001, True), (1.03, 1.0, False), (0.97, 1.0, False),
])  # fmt: skip
def test_it_is_sure_only_if_the_scatter_is_less_than_the_difference(
    factor: float, scatter: float, sure: bool
) -> None:
    base = np.exp(RNG.normal(0, scatter, 40))
    other = factor * np.exp(RNG.normal(0, scatter, 40))
    assert list(is_sure(np.stack([base, other], axis=1))) == [True, sure]


def test_it_is_not_sure_if_pairs_and_medians_disagree() -> None:
    """Changing load: the other model is faster in two of three pairs, yet its median is slower."""
    first = np.tile([1.0, 2.0, 3.0], 20)
    other = np.tile([0.9, 2.9, 2.5], 20)
    assert np.median(first / other) > 1 > np.median(first) / np.median(other)
    assert list(is_sure(np.stack([first, other], axis=1))) == [True, False]
