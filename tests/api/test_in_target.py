"""A file for another runtime is measured there, or the verdict says that it was not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model, weight

from onnxshot import Settings, quantize
from onnxshot.errors import TargetError
from onnxshot.targets import RUNTIMES

PROVEN = Settings(use_cache=False, threads=1, bench_seconds=0.01)
UNSEEN = "it was not run in {}, its target"


def made(target: str, output: Path) -> Any:
    text = "g (float[1, 32] x) => (float[1, 16] y) { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }"
    proto = model(text, {"v": weight(32, 64), "w": weight(64, 16, seed=1)})
    options: dict[str, Any] = {"target": target, "effort": "fast", "include": ("MatMul",)}
    return quantize(proto, feeds(8, x=(1, 32)), output=output, settings=PROVEN, **options).report.to_dict()


def test_an_onnx_file_for_openvino_is_measured_in_openvino(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    report = made("openvino", tmp_path / "x.onnx")
    (row,) = report["runtimes"]
    assert row["runtime"] == "openvino"
    assert row["latency"]["ms"] > 0
    assert UNSEEN.format("openvino") not in report["verdict"]["reasons"]
    assert not any("not timed" in note for note in report["notes"])
    compiled = openvino.Core().compile_model(str(tmp_path / "x.onnx"), "CPU")
    found = compiled({"x": feeds(1, x=(1, 32))[0]["x"]})[0]
    assert np.isfinite(found).all(), "the file that was measured is the one that was written"
    onnx.checker.check_model(onnx.load(tmp_path / "x.onnx"))


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_what_was_not_run_where_it_is_for_is_not_ready(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(_: object) -> None:
        raise TargetError(f"{target} is not installed", "install it")

    monkeypatch.setattr(type(RUNTIMES[target]), "check", missing)
    report = made(target, tmp_path / "x.onnx")
    assert report["verdict"]["level"] != "ready"
    assert UNSEEN.format(target) in report["verdict"]["reasons"]
    assert any("not timed" in note and "is not installed" in note for note in report["notes"])


def test_onnx_runtime_is_where_the_proof_runs(tmp_path: Path) -> None:
    reasons = made("ort", tmp_path / "x.onnx")["verdict"]["reasons"]
    assert not any("it was not run in" in reason for reason in reasons)
