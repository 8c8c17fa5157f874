"""Latency figures are consistent, and say if the runs do not show which of two models is faster."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxshot import memory
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.base import Feed
from onnxshot.runtimes.ort_bench import NOISE, Latency, bench, bench_loaded, is_sure, settled

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


def test_load_that_lasts_for_some_rounds_is_not_taken_for_a_difference() -> None:
    rng = np.random.default_rng(0)
    wrong, missed = 0, 0
    for _ in range(100):
        drift = np.repeat(rng.normal(0, 0.05, 8), 25)  # what slows one of two alike models down, for 25 rounds
        base, other = (np.exp(rng.normal(0, 0.02, 200)) for _ in range(2))
        ratio = np.median(base / (other * np.exp(drift)))
        wrong += bool(is_sure(np.stack([base, other * np.exp(drift)], axis=1))[1]) and abs(ratio - 1) > NOISE
        missed += not is_sure(np.stack([base, other * np.exp(drift) / 1.2], axis=1))[1]
    assert wrong <= 20
    assert missed <= 15


def test_it_is_not_sure_if_pairs_and_medians_disagree() -> None:
    """Changing load: the other model is faster in two of three pairs, yet its median is slower."""
    first = np.tile([1.0, 2.0, 3.0], 20)
    other = np.tile([0.9, 2.9, 2.5], 20)
    assert np.median(first / other) > 1 > np.median(first) / np.median(other)
    assert list(is_sure(np.stack([first, other], axis=1))) == [True, False]


def test_where_it_is_sure_which_is_faster_less_precision_suffices() -> None:
    scatter = np.random.default_rng(1).normal(0, 0.08, 40)
    twice, same = np.stack([2.0 + 2 * scatter, np.ones(40)], axis=1), np.stack([1.0 + scatter, np.ones(40)], axis=1)
    assert not settled(twice, 0.01)
    assert settled(twice, 0.01, clear=0.05)
    assert not settled(same, 0.01, clear=0.05), "which of the two is faster is not known"
    mixed = np.stack([np.where(np.arange(40) % 8 == 0, 0.8, 2.0), np.ones(40)], axis=1)
    assert settled(mixed, 0.01)
    scattered = np.stack([np.where(np.arange(40) % 8 == 0, 0.8, 2.0 + 2 * scatter), np.ones(40)], axis=1)
    assert not settled(scattered, 0.01, clear=0.5), "it is slower in one round of eight"


def test_timing_ends_after_three_rounds_where_the_other_is_clearly_faster() -> None:
    class Model:
        outputs = ("y",)

        def __init__(self, seconds: float) -> None:
            self.seconds, self.runs = seconds, 0

        def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
            self.runs += 1
            time.sleep(self.seconds)
            return {}

    slow, fast = Model(0.004), Model(0.001)
    _, row = bench_loaded([(Path("a"), slow), (Path("b"), fast)], [{}], rounds=40, faster=1.25)
    assert 3 <= row.rounds < 40
    _, row = bench_loaded([(Path("b"), fast), (Path("a"), slow)], [{}], rounds=12, faster=1.25)
    assert row.rounds == 12, "the other is slower"


def test_times_of_parts_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 96 x 96, then one: cut between them, each part runs on what the one before has made."""
    width, rng = 96, np.random.default_rng(0)
    text = "(float[n,96] x) => (float[n,96] y) { a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    for name in "uvw":
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(width,) * 2).astype(np.float32), name))
    model, feeds = LeanModel.of(proto), [{"x": rng.normal(size=(2 + i, width)).astype(np.float32)} for i in range(2)]
    whole = bench([model, model], feeds, rounds=5)
    monkeypatch.setattr(memory, "part_bytes", lambda: 2 * 4 * width * width)
    assert [row.parts for row in bench([model, model], feeds, rounds=5)] == [1, 1], "it fits the budget"
    monkeypatch.setattr(memory, "budget", lambda: 0)
    parted = bench([model, model], feeds, rounds=5)
    assert [row.parts for row in whole] == [1, 1]
    assert [row.parts for row in parted] == [2, 2]
    assert parted[1].rounds == 5
    assert parted[1].against(parted[0])["parts"] == 2
    assert parted[0].ratio == 1.0
