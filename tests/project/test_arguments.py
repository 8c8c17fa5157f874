"""Arguments of a wrong type are told by name; what the docs call by its package is there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import model, weight

import onnxshot
from onnxshot.errors import UsageError

FEEDS = [{"x": np.ones((1, 64), np.float32)}] * 4
QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)


@pytest.fixture
def net(tmp_path: Path) -> str:
    w = weight(64, 64)
    onnx.save(model("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": w}), tmp_path / "net.onnx")
    return str(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: onnxshot.quantize(None, FEEDS), "model is None"),
        (lambda m: onnxshot.quantize(5, FEEDS), "model is int 5.*str or Path or ModelProto or bytes or a result"),
        (lambda m: onnxshot.quantize(bytearray(b"x"), FEEDS), "model is bytearray"),
        (lambda m: onnxshot.quantize(m, FEEDS, output=5), "output is int 5"),
        (lambda m: onnxshot.quantize(m, FEEDS, settings=5), "settings is int 5"),
        (lambda m: onnxshot.Settings(threads="x"), "threads is str 'x'"),
        (lambda m: onnxshot.Goal(min_sqnr="x"), "min_sqnr is str 'x'"),
        (lambda m: onnxshot.Goal(min_sqnr=float("nan")), "Goal.min_sqnr is nan"),
        (lambda m: onnxshot.bench([], FEEDS), "models is no list"),
        (lambda m: onnxshot.bench(m, FEEDS), "models is no list"),
        (lambda m: onnxshot.bench([m], FEEDS, seconds=float("nan")), "seconds is nan"),
        (lambda m: onnxshot.bench([m], FEEDS, seconds=-1.0), "seconds is -1"),
        (lambda m: onnxshot.compare(5, m, FEEDS), "reference is int 5"),
        (lambda m: onnxshot.bench([m, 5], FEEDS), r"models\[1\] is int 5"),
        (lambda m: onnxshot.Settings(device=5), "device is int 5.*give str"),
        (lambda m: onnxshot.inspect(5), "model is int 5"),
        (lambda m: onnxshot.emit(5, to=("onnx",), output="o"), "model is int 5"),
        (lambda m: onnxshot.sensitivity(5, FEEDS), "model is int 5"),
        (lambda m: onnxshot.prune(None, FEEDS), "model is None"),
        (lambda m: onnxshot.quantize(m, None, mode="dynamic", settings=QUIET).save(None), "path is None"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_by_name(net: str, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(net)


def test_paths_and_numbers_of_numpy_are_taken(net: str) -> None:
    assert onnxshot.Settings(threads=np.int64(2)).threads == 2
    assert onnxshot.Goal(min_sqnr=np.float32(-5)).min_sqnr == -5
    assert onnxshot.quantize(Path(net), None, mode="dynamic", settings=QUIET).report.input == net


def test_packages_are_reached_by_name_and_not_imported_before() -> None:
    code = (
        "import sys, onnxshot; assert 'onnxshot.batch' not in sys.modules; "
        "assert onnxshot.batch.run.__module__ == 'onnxshot.batch.run'; assert onnxshot.recipes.__name__; "
        "assert not hasattr(onnxshot, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
