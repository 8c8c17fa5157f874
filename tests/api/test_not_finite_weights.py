"""A weight of NaN or infinity is told by name, with its node, whatever the run tries."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade.core import model, weight
from numpy.typing import NDArray
from onnx import ModelProto

import onnxshot
from onnxshot.errors import ModelError

RNG = np.random.default_rng(3)
FEEDS = [{"x": RNG.normal(size=(1, 64)).astype(np.float32)} for _ in range(4)]
QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)


def product(bad: float) -> ModelProto:
    """A product whose weight holds one such value."""
    w: NDArray[np.float32] = weight(64, 64)
    w[3, 5] = bad
    return model("g (float[n, 64] x) => (float[n, 64] y) { [mm] y = MatMul(x, w) }", {"w": w})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "run",
    [
        lambda m: onnxshot.quantize(m, FEEDS, effort="fast", settings=QUIET),
        lambda m: onnxshot.quantize(m, FEEDS, settings=QUIET),
        lambda m: onnxshot.quantize(m, FEEDS, effort="best", settings=QUIET),
        lambda m: onnxshot.quantize(m, "random", settings=QUIET),
        lambda m: onnxshot.quantize(m, FEEDS, include=("MatMul",), settings=QUIET),
        lambda m: onnxshot.quantize(m, None, mode="dynamic", settings=QUIET),
        lambda m: onnxshot.sensitivity(m, FEEDS, settings=QUIET),
        lambda m: onnxshot.tune(m, FEEDS, onnxshot.Goal(min_sqnr=20), settings=QUIET),
    ],
)
def test_a_weight_that_is_not_finite_is_named_with_its_node(run: Callable[[ModelProto], object], bad: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(ModelError, match=r"weight 'w' of node 'mm' \(MatMul\) holds NaN or infinity.*exclude=OP"):
            run(product(bad))


def test_left_out_it_is_not_looked_at(tmp_path: Path) -> None:
    w = weight(64, 64, seed=1)
    text = "g (float[n, 64] x) => (float[n, 64] y, float[n, 64] z) { [mm] y = MatMul(x, w)\n [ok] z = MatMul(x, v) }"
    bad = weight(64, 64)
    bad[0, 0] = np.nan
    given = model(text, {"w": bad, "v": w})
    with pytest.raises(ModelError, match="'mm'"):
        onnxshot.quantize(given, None, mode="dynamic", settings=QUIET)
    made = onnxshot.quantize(given, None, mode="dynamic", exclude=("mm",), settings=QUIET)
    assert made.plan.labels("dynamic") == {"ok"}
