"""Artifacts of other runtimes: where they go, what is told of them, and that none is half written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from copying_runtime import Copying
from handmade import HANDMADE
from parted import held_out
from planned_models import FAST, PROVEN

import onnxshot
from onnxshot import quantize
from onnxshot.delivery import artifacts
from onnxshot.delivery.record import SUFFIX
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.targets import TARGETS
from onnxshot.targets.ort import ORT


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Copying:
    runtime = Copying()
    monkeypatch.setitem(artifacts.RUNTIMES, "copy", runtime)
    monkeypatch.setitem(TARGETS, "copier", replace(ORT, name="copier", runtime=runtime, emits="copy"))
    return runtime


def names(folder: Path) -> set[str]:
    """What is there, but for the record that every run leaves."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(SUFFIX)}


def made(folder: Path, **options: Any) -> onnxshot.Result:
    case = HANDMADE["resnet_block"]()
    return quantize(case.model, case.feeds, settings=options.pop("settings", PROVEN), **options)


@pytest.mark.parametrize(
    ("output", "options", "wanted"),
    [
        ("net.onnx", {"emit": ("onnx", "copy")}, {"net.onnx", "net.copy", "net.more"}),
        ("net.onnx", {"emit": ("copy",)}, {"net.copy", "net.more"}),
        ("net.copy", {}, {"net.copy", "net.more"}),
        ("net", {"target": "copier"}, {"net.copy", "net.more"}),
        ("net.onnx", {"target": "copier"}, {"net.onnx"}),
        ("net.int8.onnx", {"emit": ("copy",)}, {"net.int8.copy", "net.int8.more"}),
        ("net.v2", {"emit": ("onnx", "copy")}, {"net.v2", "net.v2.copy", "net.v2.more"}),
    ],
)
def test_every_artifact_takes_the_stem_of_the_output(
    output: str, options: dict[str, Any], wanted: set[str], copying: Copying, tmp_path: Path
) -> None:
    result = made(tmp_path, output=tmp_path / output, settings=FAST, **options)
    assert names(tmp_path) == wanted
    assert {Path(artifact.path).name for artifact in result.report.outputs} == {n for n in wanted if ".more" not in n}


def test_an_artifact_is_run_in_its_own_runtime(copying: Copying, tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    result = made(tmp_path, output=tmp_path / "net.onnx", emit=("onnx", "copy"))
    plain, copied = result.report.outputs
    assert (plain.format, plain.target, plain.sqnr_db) == ("onnx", "ort", None)
    assert (copied.format, copied.path, copied.notes) == ("copy", str(tmp_path / "net.copy"), ("copied",))
    assert copied.bytes == (tmp_path / "net.copy").stat().st_size + 5
    assert copied.int8_macs_share == pytest.approx(0.75)
    assert copied.honoured == pytest.approx(30 / 32)
    assert plain.honoured is None
    total, runners = SqnrSum(), (Runner(case.model.SerializeToString()), Runner(tmp_path / "net.onnx"))
    for feed in held_out(case.feeds):
        wanted, got = (runner.run(feed) for runner in runners)
        for name in wanted:
            total.add(wanted[name], got[name])
    assert copied.sqnr_db == pytest.approx(total.db, abs=0.01)
    assert copied.latency["speedup"] > 0
    assert result.report.to_dict()["outputs"][1]["sqnr_db"] == pytest.approx(total.db, abs=0.01)


def test_what_cannot_run_here_is_said_to_be_compiled_only(copying: Copying, tmp_path: Path) -> None:
    copying.asleep = True
    (artifact,) = made(tmp_path, output=tmp_path / "net.copy").report.outputs
    assert artifact.sqnr_db is None
    assert "compiled, not run: there is no copier" in artifact.notes


def test_a_runtime_that_is_missing_is_told_before_any_work(copying: Copying, tmp_path: Path) -> None:
    copying.absent = True
    with pytest.raises(TargetError, match="pip install copy"):
        quantize(tmp_path / "missing.onnx", [], output=tmp_path / "net.copy")
    with pytest.raises(UsageError, match="no format 'mars'"):
        quantize(tmp_path / "missing.onnx", [], output=tmp_path / "net.onnx", emit=("mars",))
    with pytest.raises(UsageError, match="no output to emit"):
        quantize(tmp_path / "missing.onnx", [], emit=("onnx",))


def test_where_one_is_refused_nothing_is_written(copying: Copying, tmp_path: Path) -> None:
    copying.failing = True
    with pytest.raises(TargetError, match="refuses node 'c1'"):
        made(tmp_path, output=tmp_path / "deep" / "net.onnx", emit=("onnx", "copy"), settings=FAST)
    assert names(tmp_path) == set()


def test_a_model_is_converted_without_compressing(copying: Copying, tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    options = EmitOptions(hardware=("sm00",))
    report = onnxshot.emit(
        tmp_path / "net.onnx", to=("copy", "onnx"), output=tmp_path / "out" / "net.onnx", calib=case.feeds,
        options=options,
    )  # fmt: skip
    assert names(tmp_path / "out") == {"net.onnx", "net.copy", "net.more"}
    (copied,) = (artifact for artifact in report.outputs if artifact.format == "copy")
    assert copied.sqnr_db is not None
    assert copied.sqnr_db > 100
    assert copying.made == [options]
    with pytest.raises(UsageError, match="input itself"):
        onnxshot.emit(tmp_path / "net.onnx", output=tmp_path / "net.onnx")
    named = onnxshot.emit(tmp_path / "net.onnx", output=tmp_path / "named" / "net.copy")
    assert [artifact.format for artifact in named.outputs] == ["copy"]
    alone = onnxshot.emit(tmp_path / "net.onnx", to="copy", output=tmp_path / "net.onnx")
    assert [artifact.format for artifact in alone.outputs] == ["copy"], "the input is no output: nothing is lost"


def test_a_result_is_emitted_later(copying: Copying, tmp_path: Path) -> None:
    result = made(tmp_path, settings=FAST)
    path = result.emit("copy", tmp_path / "later")
    assert path == tmp_path / "later" / "model.int8.copy"
    assert names(tmp_path / "later") == {"model.int8.copy", "model.int8.more"}


def test_an_artifact_that_answers_wrongly_is_told(copying: Copying, tmp_path: Path) -> None:
    class Silent(Runner):
        def run(self, feed: Any) -> dict[str, Any]:
            return {name: np.zeros_like(values) for name, values in super().run(feed).items()}

    copying.load = lambda path, *, threads, options=None: Silent(path.read_bytes(), threads=threads)  # type: ignore[method-assign]
    (artifact,) = made(tmp_path, output=tmp_path / "net.copy").report.outputs
    assert artifact.sqnr_db == pytest.approx(0.0)


def test_an_artifact_that_does_not_run_is_not_published(copying: Copying, tmp_path: Path) -> None:
    def broken(path: Path, *, threads: int) -> Runner:
        raise ModelError("it does not load")

    copying.load = broken  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="does not load"):
        made(tmp_path, output=tmp_path / "net.onnx", emit=("onnx", "copy"))
    assert names(tmp_path) == set()


def test_a_normalized_model_is_held_against_the_input_on_the_samples_that_were_given(tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, tmp_path / "net.onnx")
    report = onnxshot.emit(tmp_path / "net.onnx", to="onnx", output=tmp_path / "out.onnx", calib=case.feeds)
    assert report.sqnr_db is not None
    assert report.sqnr_db > 100
    assert report.samples["judged"] == len(case.feeds)
    assert report.verdict.level == "ready"
