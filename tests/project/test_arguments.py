"""Arguments of a wrong type are told by name; what the docs call by its package is there."""

import inspect
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
        (lambda m: onnxshot.bench([], FEEDS), "models is an empty list"),
        (lambda m: onnxshot.bench(5, FEEDS), "models is int 5"),
        (lambda m: onnxshot.bench([m], FEEDS, seconds=float("nan")), "seconds is nan"),
        (lambda m: onnxshot.bench([m], FEEDS, seconds=-1.0), "seconds is -1"),
        (lambda m: onnxshot.compare(5, m, FEEDS), "reference is int 5"),
        (lambda m: onnxshot.bench([m, 5], FEEDS), r"models\[1\] is int 5"),
        (lambda m: onnxshot.Settings(device=5), "device is int 5.*give str"),
        (lambda m: onnxshot.quantize(m, FEEDS, preset=5), "preset is int 5.*give str or Path or Preset"),
        (lambda m: onnxshot.quantize(m, FEEDS, preset=Path("no.yaml")), "preset file no.yaml is not there"),
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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: onnxshot.quantize(m, FEEDS, goal=1), r"quantize\(\) takes no 'goal' \(onnxshot.tune\(model, "),
        (lambda m: onnxshot.quantize(m, FEEDS, min_sqnr=1), r"takes no 'min_sqnr' \(onnxshot.tune\(.*Goal\(min_sqnr"),
        (lambda m: onnxshot.quantize(m, FEEDS, sparsity=0.5), r"takes no 'sparsity' \(onnxshot.compress"),
        (lambda m: onnxshot.quantize(m, calibration=FEEDS), r"takes no 'calibration' \(did you mean 'calib'"),
        (lambda m: onnxshot.quantize(m, nthreads=1), r"\(did you mean settings=Settings\(threads="),
        (lambda m: onnxshot.quantize(m, FEEDS, threads=1), r"takes no 'threads' \(give settings=Settings\(threads="),
        (lambda m: onnxshot.quantize(m, FEEDS, minutes=1), r"\(give emit_options=EmitOptions\(minutes="),
        (lambda m: onnxshot.quantize(m, FEEDS, efort="best"), r"quantize\(\) takes no 'efort' \(did you mean 'effort'"),
        (lambda m: onnxshot.compare(m, m, FEEDS, prset=None), r"compare\(\) takes no 'prset' \(did you mean 'preset'"),
        (lambda m: onnxshot.prune(m, FEEDS, sparsty=0.5), r"prune\(\) takes no 'sparsty' \(did you mean 'sparsity'"),
        (lambda m: onnxshot.bench([m], zzz=1), r"bench\(\) takes no 'zzz' \(it takes models, calib"),
        (lambda m: onnxshot.tune(m, FEEDS), r"tune\(\) needs 'goal' \(tune\(model, calib, goal\)\)"),
        (lambda m: onnxshot.emit(m), r"emit\(\) needs 'output' \(emit\(model, output=...\)\)"),
        (lambda m: onnxshot.verify(m, 2), r"verify\(\) takes 1 arguments without a name, and 2 were given"),
        (lambda m: onnxshot.quantize(m, FEEDS, model=m), r"quantize\(\) was given 'model' twice"),
        (lambda m: onnxshot.doctor(thread=2), r"doctor\(\) takes no 'thread' \(did you mean 'threads'"),
        (lambda m: onnxshot.batch.run("m.yaml", worker=2), r"run\(\) takes no 'worker' \(did you mean 'workers'"),
        (lambda m: onnxshot.Settings(cache=False), r"Settings takes no 'cache' \(did you mean 'use_cache'"),
        (lambda m: onnxshot.Settings(min_sqnr=3), r"Settings takes no 'min_sqnr'.*Goal"),
        (lambda m: onnxshot.Goal(sqnr=3), r"Goal takes no 'sqnr' \(did you mean 'min_sqnr'"),
        (lambda m: onnxshot.Recipe(efort="best"), r"Recipe takes no 'efort' \(did you mean 'effort'"),
        (lambda m: onnxshot.EmitOptions(cache="x"), r"EmitOptions takes no 'cache' \(did you mean 'timing_cache'"),
        (lambda m: onnxshot.testing.assert_accuracy(m, FEEDS, sqnr=3), r"assert_accuracy\(\) takes no 'sqnr'"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_told_with_what_to_give(net: str, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(net)


def test_options_of_artifacts_name_the_field() -> None:
    for field, value, takes in (
        ("hardware", "sm89", r"\('sm89',\)"), ("minutes", "x", "float"), ("minutes", -1, "above 0"),
        ("half", 2, "bool"), ("memory_gb", 0, "above 0"), ("threads", 0, "above 0"),
        ("timing_cache", 5, "str or Path or None"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=rf"^{field} is .*{takes}"):
            onnxshot.EmitOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("samples", True, "int or str"), ("samples", 2.5, "int or str"), ("samples", 0, "above 0"),
        ("samples", "most", "'auto', or 'all'"), ("verify", 1, "bool"), ("use_cache", "no", "bool"),
        ("threads", True, "int"), ("threads", -1, "from 1 to"), ("device", "gpu", "cpu, cuda"), ("memory", -5, "4G"),
        ("memory", "much", "4G"), ("memory", True, "int or str"), ("seed", -1, "0 or above"),
        ("keep_overridable", "x", "bool"), ("requantize", 0, "bool"), ("bench_seconds", -1.0, "0 or above"),
        ("bench_seconds", float("nan"), "0 or above"), ("search_seconds", "x", "float or None"),
        ("accept", None, "bool"),
        ("shared", 5, "str or Path or None"), ("files", (), "Files"), ("progress", 5, "a function or None"),
    ],
)  # fmt: skip
def test_settings_name_the_field_and_what_it_takes(field: str, value: object, takes: str) -> None:
    with pytest.raises(UsageError) as caught:
        onnxshot.Settings(**{field: value})  # type: ignore[arg-type]
    assert caught.value.message.startswith(f"{field} is ")
    assert takes in caught.value.hint


@pytest.mark.parametrize("name", onnxshot.__all__)
def test_what_takes_a_path_takes_text_and_path(name: str) -> None:
    public = getattr(onnxshot, name)
    calls = [public, onnxshot.batch.run] if inspect.isfunction(public) else [getattr(public, "save", len)]
    for call in calls:
        for parameter in inspect.signature(call).parameters.values():
            kinds = str(parameter.annotation).split(" | ")
            assert ("Path" in kinds) <= ("str" in kinds), parameter
            paths = ("output", "folder", "stats", "preset", "path", "python", "recorded", "manifest", "keep_stages")
            assert ("Path" in kinds) or parameter.name not in paths, parameter


def test_paths_and_numbers_of_numpy_are_taken(net: str) -> None:
    assert onnxshot.Settings(threads=np.int64(2)).threads == 2
    assert onnxshot.Settings(verify=np.bool_(False), shared=Path("x")).shared == Path("x")  # type: ignore[arg-type]
    assert onnxshot.Goal(min_sqnr=np.float32(-5)).min_sqnr == -5
    assert onnxshot.quantize(Path(net), None, mode="dynamic", settings=QUIET).report.input == net


def test_packages_are_reached_by_name_and_not_imported_before() -> None:
    code = (
        "import sys, onnxshot; assert 'onnxshot.batch' not in sys.modules; "
        "assert onnxshot.batch.run.__module__ == 'onnxshot.batch.run'; assert onnxshot.recipes.__name__; "
        "assert not hasattr(onnxshot, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
