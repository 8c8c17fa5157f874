"""What trackers of experiments are told, read back from what was written."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixture_data import fixture
from fixture_runs import command, data_of
from sample_reports import NAME, report_of

from onnxshot.errors import UsageError
from onnxshot.report.trackers.send import sink_of


@pytest.fixture
def report() -> dict[str, Any]:
    return report_of("quantize")


def test_tensorboard_holds_figures_layers_and_texts(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    sink_of(f"tensorboard:{tmp_path}").send(report)
    (path,) = (tmp_path / NAME).iterdir()
    scalars: dict[str, list[float]] = {}
    texts = set()
    for body in events(path.read_bytes()):
        for value in Event.FromString(body).summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, []).append(value.simple_value)
            else:
                texts.add(value.tag.split("/")[0])
    assert scalars["sqnr_db"] == pytest.approx([report["sqnr_db"]])
    assert scalars["latency/speedup"] == pytest.approx([report["latency"]["speedup"]])
    assert scalars["layers/sqnr_db"] == pytest.approx([row["sqnr_db"] for row in report["worst"]])
    assert texts == {"recipe", "layers", "notes"}


def events(data: bytes) -> list[bytes]:
    """Bodies of a file of TFRecords: length as uint64, its checksum, the body, its checksum."""
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        found.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    return found


def test_mlflow_holds_parameters_metrics_and_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    where = (tmp_path / "runs").as_uri()
    for _ in range(2):  # the experiment is there the second time
        sink_of(f"mlflow:{where}").send(report)
    client = MlflowClient(tracking_uri=where)
    experiment = client.get_experiment_by_name("onnxshot")
    run, _ = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["sqnr_db"] == pytest.approx(report["sqnr_db"])
    assert run.data.params["target"] == "ort"
    assert json.loads(run.data.params["exclude"]) == []
    history = client.get_metric_history(run.info.run_id, "layers/sqnr_db")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == [row["sqnr_db"] for row in report["worst"]]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "notes.txt"}


def test_wandb_holds_figures_recipe_and_the_page(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.chdir(tmp_path)
    sink_of("wandb:shrinking").send(report)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    told, config, project = {}, {}, ""
    for body in entries(path.read_bytes()):
        record = Record.FromString(body)
        told |= {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if record.HasField("run"):
            project = record.run.project
            config = {item.key: item.value_json for item in record.run.config.update}
    assert project == "shrinking"
    assert json.loads(told["sqnr_db"]) == pytest.approx(report["sqnr_db"])
    assert json.loads(config["target"]) == "ort"
    assert list(path.parent.glob("files/media/html/*.html"))
    assert list(path.parent.glob("files/media/table/*.json"))


def entries(data: bytes) -> list[bytes]:
    """Bodies of a log in the format of LevelDB, behind a header of 7 bytes.

    Blocks of 32 kB hold pieces: checksum of 4 bytes, length of 2, kind (1: whole, 2: first, 3: middle, 4: last), body.
    """
    found, parts, at = [], b"", 7
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(parts)
            parts = b""
    return found


def test_every_target_is_a_run_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    sink_of(f"tensorboard:{tmp_path}").send(report_of("targets"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.ort", f"{NAME}.portable"]


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "neptune:x", ":x"])
def test_what_is_no_sink_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="tensorboard:FOLDER, wandb:PROJECT or mlflow:URI"):
        sink_of(text)


def test_a_missing_package_is_named_with_its_extra_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "out.onnx"
    assert command("quantize", fixture(NAME), "--calib", "nowhere", "-o", out, "--log", "wandb:x") == 2
    assert "pip install 'onnxshot[wandb]'" in capsys.readouterr().err


def test_what_a_tracker_refuses_is_one_error(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the result was written all the same"):
        sink_of(f"tensorboard:{tmp_path / 'file'}").send(report)


@pytest.mark.parametrize("name", ["quantize", "compress"])
def test_commands_log(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    data = data_of(NAME)
    given = ["--calib", data["calib"], "--preset", data["preset"], "--samples", "8", "-o", tmp_path / "out.onnx"]
    options = ["--sparsity", "0.5"] if name == "compress" else []
    logs = tmp_path / "logs"
    assert command(name, fixture(NAME), *given, *options, "--effort", "fast", "--log", f"tensorboard:{logs}") == 0
    assert [path.name for path in logs.iterdir()] == [NAME]
