"""Prune and quantize in one run: every stage against the input, and no zero is lost on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pains import data_of
from planning import FAST
from support import fixture, heldout, session

import onnxshot
from onnxshot import cli
from onnxshot.compress import CompressResult
from onnxshot.errors import UsageError
from onnxshot.graph.load import load_model
from onnxshot.maths.metrics import SqnrSum
from onnxshot.zeros import layers_of, lost_zeros

SETTINGS = replace(FAST, samples=32, bench_seconds=0.01)


def made(*, verify: bool = False, **options: Any) -> CompressResult:
    settings = replace(SETTINGS, verify=verify)
    return onnxshot.compress(fixture("digits_resnet"), **data_of("digits_resnet"), settings=settings, **options)


def test_all_zeros_are_there_at_the_end_and_every_stage_is_measured(tmp_path: Path) -> None:
    result = made(sparsity=0.5, output=tmp_path / "small.onnx", keep_stages=tmp_path / "stages", effort="best")
    stages = {stage.name: stage for stage in result.report.stages}
    assert list(stages) == ["input", "pruned", "quantized"]
    assert stages["input"].sqnr_db is None
    for name in ("pruned", "quantized"):
        path = tmp_path / "stages" / f"{name}.onnx"
        assert Path(stages[name].path) == path
        assert stages[name].bytes == path.stat().st_size
        assert stages[name].latency_ms > 0
    assert (tmp_path / "small.onnx").read_bytes() == (tmp_path / "stages" / "quantized.onnx").read_bytes()
    assert stages["quantized"].bytes < 0.4 * stages["input"].bytes
    pruned, small = (load_model(tmp_path / "stages" / f"{name}.onnx") for name in ("pruned", "quantized"))
    shares = [(x.sparsity, y.sparsity) for x, y in zip(layers_of(pruned, {}), layers_of(small, {}), strict=True)]
    assert all(after >= before for before, after in shares)
    assert lost_zeros(pruned, small) == []
    assert result.report.prune.sparsity == pytest.approx(0.5, abs=0.01)


def test_figures_are_against_the_input_not_against_the_stage_before() -> None:
    result = made(sparsity=0.6, effort="fast", verify=True)
    wanted, got = session(fixture("digits_resnet")), session(result.model.to_proto().SerializeToString())
    total = SqnrSum()
    for feed in heldout("digits_resnet")[0]:
        total.add(wanted.run(None, feed)[0], got.run(None, feed)[0])
    last = result.report.stages[-1]
    assert last.sqnr_db == pytest.approx(total.db, abs=3.0), "other samples, the same reference"
    assert result.report.quantize.sqnr_db > last.sqnr_db + 3, "quantization alone costs much less than both"


def test_a_zero_that_is_lost_is_found() -> None:
    pruned = made(sparsity=0.5, effort="fast").model
    other = load_model(pruned.to_proto())
    assert lost_zeros(pruned, other) == []
    proto = pruned.to_proto()
    for t in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(t)
        if values.dtype == np.int8 and values.ndim == 4:
            values = values.copy()
            values[tuple(np.argwhere(values == 0)[0])] = 1
            t.CopyFrom(onnx.numpy_helper.from_array(values, t.name))
            break
    assert len(lost_zeros(pruned, load_model(proto))) == 1


def test_without_samples_it_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="there are no samples"):
        onnxshot.compress(fixture("digits_resnet"), None, sparsity=0.5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calib = data_of("digits_resnet")
    arguments = [
        "onnxshot", "compress", str(fixture("digits_resnet")), "--calib", str(calib["calib"]), "--pattern", "2:4",
        "--samples", "16", "--effort", "fast", "-o", str(tmp_path / "out.onnx"), "--no-cache", "--json",
    ]  # fmt: skip
    if calib.get("preset"):
        arguments += ["--preset", str(calib["preset"])]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    values = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in values["stages"]] == ["input", "pruned", "quantized"]
    assert {"prune", "quantize", "seconds", "input"} <= values.keys()
    patterns = {layer.pattern for layer in layers_of(load_model(tmp_path / "out.onnx"), {})}
    assert "2:4" in patterns
    assert patterns <= {"2:4", "1:4", "dense", "channels"}
