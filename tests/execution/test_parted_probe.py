"""Statistics of a model that runs in parts equal those of the whole model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from handmade.core import model, weight

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.errors import CalibrationError
from onnxshot.execution.collect import collect, extremes, runs_in_parts
from onnxshot.execution.parted_probe import PartedProbe
from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model

WIDTH = 48
NET = f"""g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
    a = MatMul(x, w0)  b = Relu(a)  c = MatMul(b, w1)  d = Add(b, c)  e = MatMul(d, w2)  f = Sqrt(e)
    g = Cast<to=10>(d)  y = MatMul(d, w3)
}}"""
NAMES = ["y", "x", "b", "g", "d", "e", "c"]  # not in graph order


def net() -> Model:
    ready = load_model(model(NET, {f"w{i}": weight(WIDTH, WIDTH) for i in range(4)}))
    shape_inference.infer(ready)
    return ready


def samples(n: int, scale: float = 1.0) -> list[Sample]:
    rng = np.random.default_rng(0)
    given = (scale * rng.standard_normal((3 + i % 4, WIDTH)).astype(np.float32) for i in range(n))
    return [Sample(f"s{i}", {"x": values}) for i, values in enumerate(given)]


@pytest.fixture
def one_weight_a_part(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)


@pytest.mark.parametrize("settle", [False, True])
def test_statistics_are_those_of_the_whole_model(one_weight_a_part: Callable[[], None], settle: bool) -> None:
    given = samples(40)
    whole = collect(net(), NAMES, given, channels=["d", "e"], settle=settle)
    one_weight_a_part()
    assert runs_in_parts(net())
    assert len(PartedProbe(net(), NAMES, (), threads=1).parts) == 4
    parted = collect(net(), NAMES, given, channels=["d", "e"], settle=settle)
    assert parted.used == whole.used
    for name, wanted in whole.stats.items():
        found = parted.stats[name]
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-5)
        assert found.channel_absmax == pytest.approx(wanted.channel_absmax, rel=1e-5)
        assert found.histogram.counts.sum() == wanted.histogram.counts.sum()


def test_extremes_and_tensors_that_are_not_finite(one_weight_a_part: Callable[[], None]) -> None:
    one_weight_a_part()
    given = samples(5)
    found = extremes(net(), ["f", "d"], given)
    x = np.concatenate([sample.feed["x"] for sample in given])
    b = np.maximum(x @ weight(WIDTH, WIDTH), 0)
    d = b + b @ weight(WIDTH, WIDTH)
    assert (found["d"].low, found["d"].high) == pytest.approx((d.min(), d.max()), rel=1e-5)
    with pytest.raises(CalibrationError, match="tensor 'f' is NaN or infinite on sample 's0'"):
        collect(net(), ["d", "f"], given)


def test_parts_are_reported(one_weight_a_part: Callable[[], None]) -> None:
    one_weight_a_part()
    seen: list[tuple[str, int, int]] = []
    collect(net(), NAMES, samples(3), progress=lambda *step: seen.append(step))
    assert [(done, total) for _, done, total in seen] == [(i, 12) for i in range(1, 13)]
    assert seen[4][0] == "calibrating, part 2 of 4, sample 2 of 3"
    seen.clear()
    collect(net(), NAMES, samples(40), settle=True, progress=lambda *step: seen.append(step))
    assert seen[0] == ("calibrating, part 1 of 4, sample 1 of 40", 1, 160)
    assert seen[-1] == ("calibrating, part 4 of 4, sample 40 of 40", 160, 160)
    seen.clear()
    extremes(net(), ["d"], samples(3), progress=lambda *step: seen.append(step))
    assert seen[-1][0].startswith("looking at ranges, part ")
