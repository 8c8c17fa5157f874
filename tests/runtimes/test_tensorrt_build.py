"""Build engines in a worker process, with a stand-in for TensorRT 10 whose "engine" is the request it got.

Tests with TensorRT-RTX itself are in test_tensorrt_emit.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import model, weight
from numpy.typing import NDArray

from onnxshot.api.emit import emit
from onnxshot.api.quantize import quantize
from onnxshot.errors import TargetError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.runtimes import tensorrt_build
from onnxshot.runtimes.base import EmitOptions, Ranges, Runtime
from onnxshot.targets.tensorrt import TENSORRT

FAKES = Path(__file__).parents[1] / "helpers" / "fakes"
TEXT = "net (float[N,8,8,8] x) => (float y) { y = Conv(x, w) }"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT is the stand-in, here and in processes started from here."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), os.environ.get("PYTHONPATH", "")]))
    sys.modules.pop("tensorrt", None)
    yield
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path, model(TEXT, {"w": weight(8, 8, 3, 3)}))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    proto.graph.node[0].name = "conv1"
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Of four inputs, the last two are 0, and in every other output the first two."""
    by_four = values.reshape(values.shape[0], -1, 4, 9)
    by_four[::2, :, 2:], by_four[1::2, :, :2] = 0, 0
    return values


def runtime() -> Runtime:
    assert TENSORRT.runtime is not None
    return TENSORRT.runtime


def emitted(source: Path, options: EmitOptions | None = None) -> dict[str, Any]:
    """The request that the stand-in got."""
    made = runtime().emit(source, source.parent, "out", options or EmitOptions())
    assert made.files == ("out.engine",)
    found: dict[str, Any] = json.loads((source.parent / "out.engine").read_bytes())
    return found


def test_tensorrt_10_gets_a_strongly_typed_network_with_the_batch_in_it(fake: None, source: Path) -> None:
    asked = emitted(source)
    assert asked["network"] == (1 << 0) | (1 << 1)  # EXPLICIT_BATCH, STRONGLY_TYPED
    assert asked["verbosity"] == "DETAILED"
    assert asked["level"] == "NONE"
    assert "flags" not in asked
    assert Path(asked["source"]) == source  # by its path, so that external data are found


def test_a_free_batch_is_one_and_sizes_that_are_given_are_taken(fake: None, source: Path) -> None:
    assert emitted(source)["profile"] == {"x": [[1, 8, 8, 8]] * 3}
    sizes = ((1, 8, 8, 8), (4, 8, 8, 8), (16, 8, 8, 8))
    assert emitted(source, EmitOptions(shapes={"x": sizes}))["profile"] == {"x": [list(s) for s in sizes]}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "'x' has free sizes [N, 8, H, W]"),
        ({"z": ((1,), (1,), (1,))}, "no input 'z'"),
        ({"x": ((1, 8), (1, 8), (1, 8))}, "has 4 sizes"),
        ({"x": ((1, 8, 9, 9), (1, 8, 8, 8), (1, 8, 9, 9))}, "from least to largest"),
        ({"x": ((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))}, "do not fit its 8"),
    ],
)
def test_sizes_that_are_missing_or_do_not_fit_are_named(shapes: Ranges, words: str) -> None:
    loaded = load_model(model(TEXT.replace("8,8,8]", "8,H,W]"), {"w": weight(8, 8, 3, 3)}))
    with pytest.raises(UsageError) as e:
        tensorrt_build.profiles(
            {tensor.name: loaded.shape(tensor) for tensor in loaded.graph.inputs}, EmitOptions(shapes=shapes)
        )
    assert words in str(e.value)


PICTURES = [(1, 8, 12, 8), (2, 8, 8, 16), (1, 8, 9, 10), (1, 8, 9, 12), (1, 8, 9, 40)]


@pytest.fixture
def free(tmp_path: Path) -> Path:
    """A Conv of pictures of any size, with samples of several sizes."""
    text = "net (float[N,8,H,W] x) => (float[N,8,P,Q] y) { y = Conv(x, w) }"
    path = saved(tmp_path, model(text, {"w": weight(8, 8, 3, 3)}))
    (tmp_path / "calib").mkdir()
    rng = np.random.default_rng(0)
    for i, shape in enumerate(PICTURES):
        np.savez(tmp_path / "calib" / f"{i}.npz", x=rng.normal(size=shape).astype(np.float32))
    return path


def built(path: Path, **options: Any) -> tuple[Any, str]:
    """The profile that a quantization passed to the stand-in, and the report's note on it."""
    out = path.with_name("out.engine")
    found = quantize(path, path.with_name("calib"), target="tensorrt", effort="fast", output=out, **options)
    asked = json.loads(out.read_bytes())
    return asked.get("profile"), " ".join(note for artifact in found.report.outputs for note in artifact.notes)


def test_free_sizes_are_those_of_the_samples(fake: None, free: Path) -> None:
    profile, told = built(free)
    columns = list(zip(*PICTURES, strict=True))
    assert profile == {"x": [[min(c) for c in columns], [sorted(c)[2] for c in columns], [max(c) for c in columns]]}
    assert "x of 1x8x8x8 to 2x8x12x40, usually 1x8x9x12" in told
    assert "EmitOptions.shapes" in told


def test_sizes_that_are_asked_for_come_before_those_of_samples(fake: None, free: Path) -> None:
    sizes = ((1, 8, 8, 8), (1, 8, 16, 16), (4, 8, 64, 64))
    profile, told = built(free, emit_options=EmitOptions(shapes={"x": sizes}))
    assert profile == {"x": [list(s) for s in sizes]}
    assert "samples have" not in told


def test_frozen_sizes_need_no_range(fake: None, free: Path) -> None:
    for path in free.with_name("calib").iterdir():
        np.savez(path, x=np.ones((1, 8, 9, 12), np.float32))
    assert built(free, shapes={"x": (1, 8, 9, 12)})[0] is None


def test_sizes_that_are_missing_are_told_before_the_work(
    fake: None, free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxshot.api.quantize.make_quantized", lambda *_: pytest.fail("the work has begun"))
    for calib in (None, "random"):
        with pytest.raises(UsageError, match="'x' has free sizes") as e:
            quantize(free, calib, target="tensorrt", mode="weights", output=free.with_name("out.engine"))
        assert "or samples" in e.value.hint


def test_emit_takes_free_sizes_from_samples_too(fake: None, free: Path) -> None:
    out = free.with_name("out.engine")
    emit(free, output=out, calib=free.with_name("calib"))
    assert json.loads(out.read_bytes())["profile"]["x"][2] == [2, 8, 12, 40]


def test_a_model_without_free_sizes_needs_no_profile(fake: None, tmp_path: Path) -> None:
    fixed = saved(tmp_path, model(TEXT.replace("[N,", "[2,"), {"w": weight(8, 8, 3, 3)}))
    assert "profile" not in emitted(fixed)


@pytest.mark.parametrize(
    ("words", "level", "flags"),
    [
        (("ampere_plus",), "AMPERE_PLUS", []),
        (("Same_Compute_Capability", "version_compatible"), "SAME_COMPUTE_CAPABILITY", ["VERSION_COMPATIBLE"]),
    ],
)
def test_hardware_and_versions(fake: None, source: Path, words: tuple[str, ...], level: str, flags: list[str]) -> None:
    asked = emitted(source, EmitOptions(hardware=words))
    assert (asked["level"], asked.get("flags", [])) == (level, flags)


def test_unknown_hardware_is_named_with_what_there_is(fake: None, source: Path) -> None:
    with pytest.raises(TargetError, match="no hardware 'sm89'; it knows ampere_plus, same_compute_capability"):
        emitted(source, EmitOptions(hardware=("sm89",)))
    assert list(source.parent.glob("*.engine")) == []


def test_a_timing_cache_is_read_and_written_aside(fake: None, source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "caches" / "timing.cache"
    emitted(source, EmitOptions(timing_cache=cache))
    assert cache.read_bytes() == b"measured;"
    emitted(source, EmitOptions(timing_cache=cache))
    assert cache.read_bytes() == b"measured;measured;"
    assert [p.name for p in cache.parent.iterdir()] == ["timing.cache"]


def test_a_file_that_is_no_timing_cache_of_this_builder_is_left(fake: None, source: Path, tmp_path: Path) -> None:
    """A timing cache of another GPU is kept too."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TargetError, match="the timing cache is none of this TensorRT on this device"):
        emitted(source, EmitOptions(timing_cache=tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(source.parent.glob("*.engine"))


def test_a_timing_cache_that_is_a_folder_is_a_mistake_of_usage(fake: None, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        emitted(source, EmitOptions(timing_cache=tmp_path / "cache"))


def test_zeros_that_sparse_tensor_cores_use_set_the_flag_and_are_named(fake: None, tmp_path: Path) -> None:
    source = saved(tmp_path, model(TEXT, {"w": halved(weight(8, 8, 3, 3))}))
    made = runtime().emit(source, tmp_path, "out", EmitOptions())
    assert json.loads((tmp_path / "out.engine").read_bytes())["flags"] == ["SPARSE_WEIGHTS"]
    assert made.notes == ("built to use 2:4 zeros, which 1 weights have: conv1",)


def test_zeros_after_pairs_come_with_a_warning(fake: None, tmp_path: Path) -> None:
    values = halved(np.full((8, 8, 3, 3), 5, np.int8))
    text = """net (float[N,8,8,8] x) => (float y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, s, z)
        y = Conv(d, wd)
    }"""
    constants = {"w": values, "s": np.float32(0.1), "z": np.int8(0)}
    made = runtime().emit(saved(tmp_path, model(text, constants)), tmp_path, "out", EmitOptions())
    assert any("not to use 2:4 zeros after Q/DQ pairs" in note for note in made.notes)


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("no gpu", EmitOptions(), "CUDA initialization failure with error: 35; TypeError"),
        ("crash", EmitOptions(), "crashed (SIGABRT) at node 'conv1' (Conv)"),
        ("sleep", EmitOptions(minutes=0.02), "longer than 0.02 minutes"),
        ("fill", EmitOptions(memory_gb=0.3), "more than 0.3 GB of memory"),
        ("refuse", EmitOptions(), "at node 'conv1': Conv: Assertion failed: it is not to be; more of it"),
        ("nothing", EmitOptions(), "at node 'conv1': no kernel for conv1"),
    ],
)
def test_what_the_builder_does_wrong_is_one_error(
    fake: None, source: Path, monkeypatch: pytest.MonkeyPatch, mode: str, options: EmitOptions, words: str
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", mode)
    with pytest.raises(TargetError) as e:
        emitted(source, options)
    assert words in str(e.value)
    assert [p.name for p in source.parent.iterdir()] == ["net.onnx"]  # nothing half made is left


def test_what_was_there_stays_where_the_build_fails(
    fake: None, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = emitted(source)
    monkeypatch.setenv("FAKE_TENSORRT", "crash")
    with pytest.raises(TargetError):
        emitted(source)
    assert json.loads((source.parent / "out.engine").read_bytes()) == before


def test_where_neither_module_is_installed_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(TargetError) as e:
        runtime().check()
    assert e.value.exit_code == 6
    assert "onnxshot[tensorrt]" in e.value.hint
    assert "onnxshot[tensorrt-rtx]" in e.value.hint
    assert "not installed" in runtime().runs_here()


def test_a_tensorrt_that_is_too_old_is_passed_over(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt_build.module().__name__ == "tensorrt"
    monkeypatch.setattr(tensorrt_build.module(), "__version__", "8.6.1")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(TargetError, match=r"tensorrt 8\.6\.1 is older than 10"):
        runtime().check()


def test_half_is_refused_as_types_are_the_graphs(fake: None, source: Path) -> None:
    with pytest.raises(TargetError, match="types that the graph states"):
        emitted(source, replace(EmitOptions(), half=True))


def test_a_builder_ends_where_nobody_waits_for_it(tmp_path: Path) -> None:
    """A build may take half an hour, and its caller may be killed meanwhile."""
    code = "import pathlib, time\npathlib.Path(__file__ + '.begun').touch()\ntime.sleep(60)\n"
    (tmp_path / "slow.py").write_text(code)
    job = {"module": "slow", "log": str(tmp_path / "log"), "answer": str(tmp_path / "answer")}
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", str(tensorrt_build._WORKER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as builder:
        assert builder.stdin is not None
        builder.stdin.write(json.dumps(job).encode() + b"\n")
        builder.stdin.flush()
        while not (tmp_path / "slow.py.begun").exists():
            assert builder.poll() is None
            time.sleep(0.02)
        builder.stdin.close()
        assert builder.wait(20) == 1
    assert not (tmp_path / "answer").exists()


def test_a_run_that_names_no_target_is_for_the_one_whose_artifact_it_makes(fake: None, free: Path) -> None:
    out = free.with_name("out.engine")
    found = quantize(free, free.with_name("calib"), effort="fast", output=out)
    assert found.report.recipe["target"] == "tensorrt"
    assert json.loads(out.read_bytes())["profile"]["x"][0] == [1, 8, 8, 8]
    with pytest.raises(TargetError, match="TensorRT refuses"):
        quantize(free, free.with_name("calib"), effort="fast", output=out, target="ort")
