"""The scripts of examples/ run, write files that load, and print figures that are measured here again."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from fixture_data import ROOT, accuracy

EXAMPLES = ROOT / "examples"
FAST = ("image_classifier", "speech")
SLOW = ("detector", "sentence_encoder", "llm_4bits", "pipeline_with_gate")


def run(name: str, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What an example prints, run in this process as the command that its first line names."""
    monkeypatch.setenv("ONNXSHOT_CACHE", str(out / "cache"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(out)])
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


def figures(text: str, name: str) -> list[float]:
    """The numbers of the line that begins with a name."""
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return [float(found) for found in re.findall(r"-?\d+\.\d+", line)]


def test_every_example_is_run_here_and_listed() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(FAST + SLOW)
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    for name in FAST + SLOW:
        assert f"](../examples/{name}.py)" in page
        assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text("utf-8").split('"""')[1]


def test_an_image_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, made = run("image_classifier", tmp_path, capsys, monkeypatch), tmp_path / "classifier.int8.onnx"
    assert figures(text, "size")[1] == pytest.approx(made.stat().st_size / 1e6, abs=0.006)
    expected = [100 * accuracy("digits_resnet"), 100 * accuracy("digits_resnet", made)]
    assert figures(text, "top-1") == pytest.approx(expected, abs=0.06)
    assert figures(text, "SQNR")[0] > 30


def test_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("speech", tmp_path, capsys, monkeypatch)
    assert min(figures(text, "digits")) > 97
    assert figures(text, "SQNR")[0] > 20
    ops = {node.op_type for node in onnx.load(tmp_path / "speech.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_others(name: str, tmp_path: Path) -> None:
    """Twice into one folder, as a user does who runs a script again."""
    for _ in range(2):
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not done.stderr
    written = [path for path in tmp_path.rglob("*.onnx")]
    assert written
    for path in written:
        onnx.checker.check_model(str(path))
    text = done.stdout
    if name == "sentence_encoder":
        assert figures(text, "neighbours")[0] > 90
    elif name == "detector":
        assert all(db > 30 for db in figures(text, "quiet, loud"))
    elif name == "llm_4bits":
        before, after = figures(text, "perplexity")
        assert 4 < before < after < 6
    else:
        assert figures(text, "gate")[0] > 18


@pytest.mark.slow
def test_a_gate_that_is_missed_stops_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    script = runpy.run_path(str(EXAMPLES / "pipeline_with_gate.py"))
    script["main"].__globals__["LEAST_DB"] = 150.0
    assert script["main"](tmp_path) == 3
    assert not (tmp_path / "bundle").exists()
