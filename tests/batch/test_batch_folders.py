"""Folders of optimum and transformers.js as models of a batch."""

import json
from pathlib import Path

import onnx
import pytest
from batch_examples import manifest, two_models

from onnxshot.batch import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    two_models(tmp_path)
    (tmp_path / "net" / "onnx").mkdir(parents=True)
    for name in ("encoder_model", "decoder_model"):
        onnx.save(onnx.load(tmp_path / "one.onnx"), tmp_path / "net" / "onnx" / f"{name}.onnx")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "net" / name).write_text("{}")
    return tmp_path


def test_a_folder_is_one_cell_and_is_done_once(folder: Path) -> None:
    path = manifest(folder, models=["net"], targets=["ort"])
    (row,) = run(path, workers=1).rows
    assert row.get("error") is None
    cell = folder / "out" / "net" / "ort"
    named = {output["file"] for output in row["outputs"]}
    models = {f"net/onnx/{name}_model_quantized" for name in ("encoder", "decoder")}
    copies = {"net/config.json", "net/tokenizer.json"}
    assert named == {f"{model}{suffix}" for model in models for suffix in (".onnx", ".recipe.yaml")} | copies
    assert all((cell / name).is_file() for name in named)
    assert 20 < row["sqnr_db"] < 60
    report = json.loads((cell / "report.json").read_text())
    assert set(report["reports"]) == {"onnx/encoder_model.onnx", "onnx/decoder_model.onnx"}
    (again,) = run(path, workers=1).rows
    assert again["resumed"]
    (folder / "net" / "tokenizer.json").write_text('{"version": 2}')
    (changed,) = run(path, workers=1).rows
    assert not changed["resumed"]
    assert (cell / "net" / "tokenizer.json").read_text() == '{"version": 2}'


def test_what_works_for_one_file_alone_fails_the_cell_of_a_folder(folder: Path) -> None:
    stages = {"stages": [{"quantize": {}}, {"quantize": {}}]}
    models = [{"model": "net", "emit": "openvino"}, {"model": "net", "name": "two", "recipe": stages}]
    first, second = run(manifest(folder, models=models, targets=["ort"]), workers=1).rows
    assert "emit, stats and thresholds.eval are for one file" in first["error"]
    assert "takes no stages" in second["error"]
