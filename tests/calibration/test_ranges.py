"""Ranges: each method against direct numpy on the full data, and the rules of the automatic choice."""

from collections.abc import Callable

import numpy as np
import pytest
from array_statistics import observe
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.calibration import range_methods
from onnxshot.calibration.range_error import distribution
from onnxshot.calibration.range_methods import (
    METHODS,
    Range,
    choose_range,
    expected_error,
    known_methods,
    named_function,
    range_sqnr_db,
)
from onnxshot.calibration.stats import NO_STATS
from onnxshot.errors import CalibrationError
from onnxshot.maths.affine import (
    FLOAT8E4M3FN,
    INT4,
    INT8,
    INT16,
    UINT8,
    UINT16,
    QuantScheme,
    dequantize,
    params_from_range,
    quantize,
)
from onnxshot.maths.sqnr import CAP_DB, sqnr_db

U8, S8, S4 = QuantScheme(UINT8), QuantScheme(INT8, True), QuantScheme(INT4, True)
S16, U16, F8 = QuantScheme(INT16, True), QuantScheme(UINT16), QuantScheme(FLOAT8E4M3FN, True)
SCHEMES = {"u8": U8, "s8": S8, "s4": S4, "s16": S16, "u16": U16}
N = 16_000
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1.0 + np.exp(-x))


def data(kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "normal": lambda: rng.standard_normal(N),
        "relu": lambda: np.maximum(rng.standard_normal(N) - 0.5, 0.0),
        "laplace": lambda: rng.laplace(0.3, 1.0, N),
        "uniform": lambda: rng.uniform(-2.0, 5.0, N),
        "outlier": lambda: np.append(rng.standard_normal(N), [40.0, -60.0]),
        "spread": lambda: rng.standard_normal(N) * np.exp(rng.standard_normal(N)),
        "silu": lambda: silu(2.0 * rng.standard_normal(N)),
    }
    return np.asarray(makers[kind](), np.float32)


KINDS = ("normal", "relu", "laplace", "uniform", "outlier", "spread", "silu")


def actual_error(x: NDArray[np.float32], low: float, high: float, scheme: QuantScheme) -> float:
    params = params_from_range(low, high, scheme)
    return float(np.mean(np.square(dequantize(quantize(x, params), params).astype(np.float64) - x)))


def brute_force(x: NDArray[np.float32], scheme: QuantScheme) -> float:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    ratios = np.concatenate([np.linspace(1, 0.1, 31), np.geomspace(0.09, 0.02, 5)])
    if scheme.symmetric:
        top = max(-low, high)
        return min(actual_error(x, max(-top * r, low), min(top * r, high), scheme) for r in ratios)
    lows = low * ratios if low < 0 else np.zeros(1)
    return min(actual_error(x, float(a), high * r, scheme) for a in lows[::2] for r in ratios[::2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["u8", "s8", "s4", "s16", "u16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_expected_error_is_the_actual_error(kind: str, scheme: str, method: str) -> None:
    x = data(kind)
    stats = observe(x)
    chosen = choose_range(stats, SCHEMES[scheme], method)
    actual = actual_error(x, chosen.low, chosen.high, SCHEMES[scheme])
    assert expected_error(stats, chosen, SCHEMES[scheme]) == pytest.approx(actual, rel=0.15)
    params = params_from_range(chosen.low, chosen.high, SCHEMES[scheme])
    measured = sqnr_db(x, dequantize(quantize(x, params), params))
    assert range_sqnr_db(stats, chosen, SCHEMES[scheme]) == pytest.approx(measured, abs=0.7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["u8", "s8", "s4"])
def test_mse_is_as_good_as_brute_force_on_all_values(kind: str, scheme: str) -> None:
    x = data(kind)
    chosen = choose_range(observe(x), SCHEMES[scheme], "mse")
    # SiLU piles up at its minimum: where the codes fall on that spike is beyond a model of uniform rounding noise.
    slack = 1.06 if kind == "silu" else 1.03
    assert actual_error(x, chosen.low, chosen.high, SCHEMES[scheme]) <= slack * brute_force(x, SCHEMES[scheme])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [U8, S8, S4, F8])
def test_auto_is_never_worse_than_minmax(kind: str, scheme: QuantScheme) -> None:
    """onnxruntime 10571: percentile took BERT from F1 92 to 5.8 without a word."""
    x = data(kind)
    auto = choose_range(observe(x), scheme)
    assert actual_error(x, auto.low, auto.high, scheme) <= 1.01 * actual_error(x, x.min(), x.max(), scheme)


def test_auto_leaves_a_range_alone_when_clipping_gains_nothing() -> None:
    x = data("uniform")
    assert choose_range(observe(x), U8) == Range(float(x.min()), float(x.max()), "minmax", 0.0)
    assert choose_range(observe(data("normal")), S16).method == "minmax"


def test_auto_clips_the_tails_of_few_bits() -> None:
    chosen = choose_range(observe(data("laplace")), S4)
    assert chosen.method != "minmax"
    assert 0.0 < chosen.clipped < 0.05


def test_auto_keeps_outliers_that_clipping_would_lose_for_a_small_gain() -> None:
    """onnxruntime 10571: the outliers of a transformer are few and carry meaning."""
    rng = np.random.default_rng(1)
    for size in np.geomspace(20, 200, 12):
        x = np.append(rng.standard_normal(16_000), [size]).astype(np.float32)
        stats = observe(x)
        auto, mse = choose_range(stats, S8), choose_range(stats, S8, "mse")
        gain = range_sqnr_db(stats, mse, S8) - range_sqnr_db(stats, Range(stats.low, stats.high, "", 0.0), S8)
        if mse.high < 0.5 * size and gain < 2.9:
            assert auto.high > 0.6 * size


def test_minmax_is_exact_and_clips_nothing() -> None:
    x = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    x[777] = 9.25
    assert choose_range(observe(x), U8, "minmax") == Range(float(x.min()), 9.25, "minmax", 0.0)


def test_moving_average_is_the_mean_of_sample_extremes() -> None:
    first, second = (np.linspace(low, low + 5, 1000, dtype=np.float32) for low in (-1.0, -1.25))
    chosen = choose_range(observe(first, second), U8, "moving-average")
    assert (chosen.low, chosen.high) == (-1.125, 3.875)
    assert chosen.clipped == pytest.approx(0.025, abs=2e-3)


@pytest.mark.parametrize("method", ["moving-average", "percentile", "entropy"])
def test_a_method_that_costs_more_than_10_db_is_not_obeyed(method: str) -> None:
    """onnxruntime 10571: few large values that carry most of the energy."""
    rng = np.random.default_rng(5)
    quiet = [rng.standard_normal(50_000).astype(np.float32) for _ in range(8)]
    loud = quiet[0].copy()
    loud[::3_000] = 100.0
    stats = observe(*quiet, loud)
    chosen = choose_range(stats, U8, method)
    assert (chosen.low, chosen.high, chosen.method, chosen.clipped) == (stats.low, stats.high, "minmax", 0.0)
    assert chosen.note.startswith(f"{method} would cost ")
    assert choose_range(observe(*quiet), U8, method).note == ""


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace"])
def test_percentile_clips_half_of_the_rest_on_each_side(kind: str) -> None:
    x = np.tile(data(kind), 10)
    x *= np.random.default_rng(3).uniform(0.5, 1.5, x.size).astype(np.float32)
    stats = observe(x)
    chosen = choose_range(stats, U8, "percentile")
    width = stats.histogram.width
    assert chosen.low == pytest.approx(np.quantile(x, 0.00005), abs=2 * width + 0.05)
    assert chosen.high == pytest.approx(np.quantile(x, 0.99995), abs=2 * width + 0.05)
    assert (x > chosen.high).mean() <= 0.00005
    assert (x < chosen.low).mean() <= 0.00005


def test_entropy_drops_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    x = data("uniform")
    chosen = choose_range(observe(x), S8, "entropy")
    assert chosen.high == pytest.approx(5.0, rel=0.05)
    x = np.append(data("normal"), np.float32(20.0))
    assert 2.0 < choose_range(observe(x), S8, "entropy").high < 12.0


@pytest.mark.parametrize("method", METHODS)
@given(values=st.lists(floats, min_size=1, max_size=30), scheme=st.sampled_from([U8, S8, S4, S16, U16, F8]))
@settings(max_examples=60)
def test_every_range_lies_within_the_extremes(method: str, values: list[float], scheme: QuantScheme) -> None:
    x = np.asarray(values, np.float32)
    stats = observe(x)
    chosen = choose_range(stats, scheme, method)
    assert stats.low <= chosen.low <= chosen.high <= stats.high
    assert 0.0 <= chosen.clipped <= 1.0
    assert expected_error(stats, chosen, scheme) >= 0.0
    assert abs(range_sqnr_db(stats, chosen, scheme)) <= CAP_DB


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_clipped_share_is_that_of_the_values(kind: str, method: str) -> None:
    x = data(kind)
    for scheme in (U8, S8, S4):
        chosen = choose_range(observe(x), scheme, method)
        outside = float(((x < chosen.low) | (x > chosen.high)).mean())
        assert chosen.clipped == pytest.approx(outside, abs=1e-3)


def test_extremes_that_the_subsample_missed_still_cost() -> None:
    x = np.random.default_rng(4).standard_normal(400_000).astype(np.float32)
    x[3] = 60.0
    stats = observe(x, subsample=True)
    h = stats.histogram
    assert (h.first + len(h.counts)) * h.width < 10
    chosen = Range(-5.0, 5.0, "by hand", 0.0)
    assert expected_error(stats, chosen, S8) == pytest.approx(actual_error(x, -5.0, 5.0, S8), rel=0.1)


@pytest.mark.parametrize("kind", ["relu", "laplace", "spread"])
def test_the_distribution_of_a_subsample_is_that_of_all_values(kind: str) -> None:
    """Rare values in a few rows of a few samples: the picks miss most of them, the tops of the rows do not."""
    rng = np.random.default_rng(5)
    arrays = []
    for i in range(24):
        x = rng.permutation(np.resize(data(kind), 64 * 28 * 28)).reshape(1, 64, 28, 28)
        if i % 8 == 0:
            for channel in (3, 40):
                x[0, channel, :2, 5] *= 6.0
        arrays.append(x.astype(np.float32))
    full, seen = observe(*arrays), observe(*arrays, subsample=True)
    assert seen.histogram.total < full.histogram.total / 10
    first, counts = distribution(seen)
    same, every = distribution(full)
    assert (first, len(counts)) == (same, len(every))
    assert every.tolist() == full.histogram.counts.tolist(), "nothing is made up where everything is known"
    share = seen.histogram.total / seen.count
    above, wanted = np.cumsum(counts[::-1])[::-1] / share, np.cumsum(every[::-1])[::-1]
    # Many values: to the precision of a sample. Few: never fewer than the tops that are out there, nor many times more.
    many = wanted * share > 400
    assert np.allclose(above[many], wanted[many], rtol=0.2)
    assert (above[wanted > 0] >= 1).all()
    few = (wanted > 0) & ~many
    assert np.all(above[few] <= 3 * wanted[few] + 3 / share)
    for method in ("percentile", "mse"):
        with_full, with_seen = (choose_range(stats, U8, method) for stats in (full, seen))
        cost = range_sqnr_db(full, with_full, U8) - range_sqnr_db(full, with_seen, U8)
        assert abs(cost) <= 0.2


def test_tensors_of_zeros_and_constants() -> None:
    for value in (0.0, 5.0, -5.0, 1e-45, 3e38):
        stats = observe(np.full(10, value, np.float32))
        for method in METHODS:
            chosen = choose_range(stats, U8, method)
            assert chosen.low == chosen.high == float(np.float32(value))
    assert range_sqnr_db(observe(np.zeros(10, np.float32)), Range(0.0, 0.0, "minmax", 0.0), U8) == CAP_DB


def test_wrong_requests_say_what_was_found() -> None:
    with pytest.raises(ValueError, match="found 'kl'"):
        choose_range(observe(np.ones(3, np.float32)), U8, "kl")
    with pytest.raises(ValueError, match="no values"):
        choose_range(NO_STATS, U8)


def test_a_function_of_the_caller_chooses_from_the_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_methods, "_GIVEN", {})
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    stats, seen = observe(values), []

    def middle(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, float]:
        seen.append((counts, edges))
        return -3.0, 3.0

    name = named_function(middle)
    assert named_function(middle) == name
    assert name in known_methods()
    chosen = choose_range(stats, S8, name)
    assert (chosen.low, chosen.high, chosen.method) == (-3.0, 3.0, name)
    assert chosen.clipped == pytest.approx(np.mean(np.abs(values) > 3), abs=0.001)
    ((counts, edges),) = seen
    assert len(edges) == len(counts) + 1
    assert counts.sum() == pytest.approx(len(values), rel=0.01)
    assert named_function(lambda counts, edges: (0.0, 0.0)) != named_function(lambda counts, edges: (1.0, 1.0))
    for wrong in (lambda counts, edges: (1.0, -1.0), lambda counts, edges: None, lambda counts, edges: (0, np.inf)):
        with pytest.raises(CalibrationError, match=r"range method .*lambda"):
            choose_range(stats, S8, named_function(wrong))
