"""The script behind docs/compatibility.md: rows are measured, kept, and told with what falls short."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def entry(folder: Path) -> None:
    """A Conv that any tool quantizes, 3 samples to calibrate on, 2 to judge by."""
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, 1, [1, 16, 24, 24]) for name in "xy")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    y = helper.make_tensor_value_info("y", 1, [1, 16, 22, 22])
    graph = helper.make_graph(nodes, "net", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "calib").mkdir(parents=True)
    onnx.save(model, str(folder / "model.onnx"))
    samples = rng.normal(0, 1, (5, 1, 16, 24, 24)).astype(np.float32)
    for i in range(3):
        np.savez(folder / "calib" / f"{i}.npz", x=samples[i])
    np.savez(folder / "eval.npz", x__0=samples[3], x__1=samples[4])


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = [
        sys.executable,
        str(BENCHMARKS / "compatibility.py"),
        str(folder),
        "--effort",
        "fast",
        "--seconds",
        "0.01",
    ]
    return subprocess.run([*script, *options], capture_output=True, text=True, check=True)


def test_rows_are_measured_once_and_told(tmp_path: Path) -> None:
    entry(tmp_path / "models" / "good")
    (tmp_path / "models" / "bad").mkdir()
    (tmp_path / "models" / "bad" / "model.onnx").write_bytes(b"no model")
    known = tmp_path / "known.json"
    options = ("--json", str(known), "--stages", "given", "int8", "ort_static", "speed")
    text = run(tmp_path / "models", *options).stdout
    rows = json.loads(known.read_text())["rows"]
    good = rows["good"]
    assert good["given"]["macs"] == 16 * 22 * 22 * 16 * 9
    assert good["int8"]["share"] == 1.0
    assert good["int8"]["db"] > 25
    assert good["int8"]["bytes"] < good["given"]["bytes"]
    assert set(good["speed"]) == {"float", "int8", "ort_static"}
    assert good["speed"]["float"][0] == 1.0
    assert all("why" in rows["bad"][stage] for stage in ("given", "int8", "ort_static", "speed"))
    assert "| `good` | 0.01 | 100.0 % |" in text
    assert "the given file does not run" in text
    assert str(tmp_path) not in text
    again = run(tmp_path / "models", *options)
    assert again.stderr == "", "what is known is not measured again"
    assert again.stdout == text


def test_what_falls_short_is_named() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from compatibility_table import faults
    finally:
        sys.path.remove(str(BENCHMARKS))
    given = {"bytes": 1000, "float_share": 0.95, "float_bytes": 4.0, "macs": 10}
    fine = {"bytes": 300, "db": 30.0, "share": 0.95, "weights_alone": 0.0, "float": {}}
    speed = {
        "float": [1.0, 0.0, 1.0],
        "int8": [1.5, 0.01, 0.7],
        "dynamic": [1.2, 0.01, 0.8],
        "ort_static": [1.4, 0.01, 1],
    }
    peer = {"bytes": 300, "db": 30.0}
    row = {"given": given, "int8": fine, "speed": speed, "channels": {"kept": 0.85}, "ort_static": peer}
    assert list(faults(row)) == []

    def kinds(**changed: object) -> list[str]:
        return [kind for kind, _ in faults(row | changed)]

    assert kinds(int8=fine | {"share": 0.5, "float": {"MatMul": 0.5}}) == ["share"]
    assert kinds(int8=fine | {"share": 0.5, "weights_alone": 0.45}) == []
    assert kinds(int8=fine | {"bytes": 400}) == ["size", "below ORT static in something"]
    assert kinds(int8=fine | {"bytes": 400}, given=given | {"float_bytes": 2.0}, ort_static={}) == []
    assert kinds(speed=speed | {"int8": [0.8, 0.01, 1.2]}) == [
        "slower than float", "slower than its own dynamic", "below ORT static in every respect",
    ]  # fmt: skip
    assert kinds(speed=speed | {"int8": [0.98, 0.01, 1], "dynamic": [0.9, 0, 1], "ort_static": [0.9, 0, 1]}) == []
    assert kinds(ort_static=peer | {"db": 40.0}) == ["below ORT static in something"]
    assert kinds(channels={"kept": 0.99}) == kinds(channels={"why": "none"}) == ["channels"]
    assert kinds(int8={"why": "ModelError: no"}) == ["not quantized"]
