"""Statistics of scaled channels from one pass, against a second pass over the scaled model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_data import fixture
from fixture_runs import data_of
from handmade.core import model, vector, weight
from numpy.typing import NDArray
from planned_models import FAST

from onnxshot import memory, quantize
from onnxshot.calibration.readers import Sample, open_data
from onnxshot.calibration.stats import TensorStats
from onnxshot.execution import statistics_source
from onnxshot.execution.collect import Collected, collect
from onnxshot.execution.kept_glimpses import scalable
from onnxshot.execution.statistics_source import RunStatistics, after_scaling, from_data
from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.model_inputs import input_specs
from onnxshot.targets import target_named

CNN = """g (float[N, 3, H, 24] x) => (float[N, 5] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  a = Clip(c, zero, six)  d = Conv(a, v)  r = Relu(d)
    p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB = 1>(f, u) }"""
SIX = {"zero": np.array(0, np.float32), "six": np.array(1e3, np.float32)}
NAMES = ["x", "c", "a", "d", "r", "p", "f", "y"]
C, R = ("c", "a"), ("d", "r", "p", "f")  # tensors that have the channels of the first and of the second Conv


def cnn(first: NDArray[np.float32], second: NDArray[np.float32]) -> Model:
    """The network with its channels scaled by these factors, which leaves its outputs as they are."""
    given: dict[str, Any] = {
        "w": weight(8, 3, 3, 3) * first[:, None, None, None],
        "b": vector(8) * first,
        "v": weight(40, 8, 1, 1) * second[:, None, None, None] / first[:, None, None],
        "u": weight(5, 40) / second,
        **SIX,
    }
    made = load_model(model(CNN, {name: np.asarray(value, np.float32) for name, value in given.items()}))
    shape_inference.infer(made)
    return made


def samples(*heights: int, rows: int = 1) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [
        Sample(f"s{i}", {"x": rng.normal(0, 1 + i, (rows, 3, height, 24)).astype(np.float32)})
        for i, height in enumerate(heights)
    ]


def pass_over(made: Model, given: list[Sample], **options: Any) -> Collected:
    return collect(made, NAMES, given, channels=["f"], threads=1, **options)


ONES = np.ones(8, np.float32), np.ones(40, np.float32)
FACTORS = np.linspace(1, 9, 8, dtype=np.float32), np.linspace(5, 1, 40, dtype=np.float32)
BY_TENSOR = {**dict.fromkeys(C, FACTORS[0]), **dict.fromkeys(R, FACTORS[1])}


def assert_close(found: TensorStats, wanted: TensorStats) -> None:
    """Equal up to float rounding: a value at the edge of a bin may lie in the next one."""
    for name in ("low", "high", "mean_low", "mean_high", "channel_absmax", "row_lows", "row_highs"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5, err_msg=name)
    assert (found.count, found.samples) == (wanted.count, wanted.samples)
    for name in ("histogram", "bottoms", "tops"):
        mine, other = getattr(found, name), getattr(wanted, name)
        assert (mine.width_log2, mine.total, mine.zeros) == (other.width_log2, other.total, other.zeros)
        first = min(mine.first, other.first)
        length = max(mine.first + len(mine.counts), other.first + len(other.counts)) - first
        sums = [
            np.cumsum(np.pad(h.counts, (h.first - first, length - (h.first - first) - len(h.counts))))
            for h in (mine, other)
        ]
        assert np.abs(sums[0] - sums[1]).max() <= max(2, mine.total // 1000), name


@pytest.mark.parametrize("heights", [(24, 24, 24), (16, 24, 8, 24)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("spilled", [False, True])
def test_they_equal_a_second_pass(
    heights: tuple[int, ...], rows: int, spilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spilled:
        monkeypatch.setattr(memory, "held_bytes", lambda: 300_000)  # the second sample on
    plain, given = cnn(*ONES), samples(*heights, rows=rows)
    first = pass_over(plain, given, keep=scalable(plain))
    assert first.kept is not None
    assert first.stats == pass_over(plain, given).stats
    found = first.kept.scaled(BY_TENSOR, first.stats)
    assert found.keys() == BY_TENSOR.keys()
    second = pass_over(cnn(*FACTORS), given).stats
    for name, stats in found.items():
        assert_close(stats, second[name])
    assert found == first.kept.scaled(BY_TENSOR, first.stats), "they can be read twice"


def test_only_tensors_that_scaling_may_reach_are_kept() -> None:
    assert scalable(cnn(*ONES)).keys() == {*C, *R}
    product = load_model(model("g (float[N, 4, 8] x) => (float[N, 4, 8] y) { y = MatMul(x, w) }", {"w": weight(8, 8)}))
    assert scalable(product) == {}


def test_a_matrix_that_was_not_seen_whole_is_left_out() -> None:
    """Its rows span all channels; of more than 4096 values only some are kept."""
    plain, given = cnn(*ONES), samples(8, rows=120)
    first = pass_over(plain, given, keep=scalable(plain))
    assert first.kept is not None
    found = first.kept.scaled(BY_TENSOR, first.stats)
    assert found.keys() == BY_TENSOR.keys() - {"f"}
    assert_close(found["p"], pass_over(cnn(*FACTORS), given).stats["p"])


def gathered() -> tuple[RunStatistics, Any]:
    """What a run with the cache gathers, and what `after_scaling` takes beside it."""
    plain, settings = cnn(*ONES), replace(FAST, use_cache=True)
    data = open_data([sample.feed for sample in samples(*[24] * 8)], input_specs(plain))
    plan = make_plan(plain, target_named("ort"), Recipe())
    return from_data(plain, plan, Recipe(), data, settings, keep=True), (plain, BY_TENSOR, data, settings)


def test_statistics_from_the_cache_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path))
    passes: list[int] = []

    def counted(*given: Any, **options: Any) -> Collected:
        passes.append(1)
        return collect(*given, **options)

    monkeypatch.setattr(statistics_source, "collect", counted)
    first, rest = gathered()
    found, runs = after_scaling(first, *rest)
    assert (len(passes), runs) == (1, 0)
    assert found.keys() == BY_TENSOR.keys() & first.statistics.tensors.keys() != set()
    again, rest = gathered()
    assert again.kept is None
    assert after_scaling(again, *rest) == (found, 0), "they are cached too"
    unknown = replace(again, key="")
    assert after_scaling(unknown, *rest) == (found, len(first.calibrated)), "the same pass is made again"
    assert len(passes) == 2


def test_equalizing_runs_no_sample_again() -> None:
    result = quantize(fixture("digits_mobile"), **data_of("digits_mobile"), settings=FAST, equalize=True)
    assert result.report.samples["inferences"] == result.report.samples["calibration"]
    assert "channels were equalized" in result.report.notes
