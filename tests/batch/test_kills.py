"""Every verb, killed at every moment at which it changes a file: nothing is lost or mixed, and the rerun is whole.

The verbs run in forks of this process, and so does all that asks OpenVINO: its threads do not outlive a fork.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill_points
import numpy as np
import onnxruntime
import pytest
from handmade.core import model

from onnxshot.batch.cells import Done
from onnxshot.batch.local_engine import Local
from onnxshot.batch.store import Store
from onnxshot.batch.worker import run_cell, settings_of
from onnxshot.bundles.bundle_manifest import check_files, read_manifest
from onnxshot.cli import app
from onnxshot.delivery.record import sha256
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")

TEXT = "net (float[1, 64] x) => (float[1, 64] y) { t = MatMul(x, w) u = Add(t, b) v = Relu(u) y = MatMul(v, z) }"
X = np.linspace(-1, 1, 64, dtype=np.float32)[None]
QUICK = ["--threads", "1"]
TIMED = (".json", ".jsonl", ".html")
"""Files that tell how long a run took: they are whole, but not the same bytes twice."""

VERBS: dict[str, Callable[[Path], list[str]]] = {
    "quantize": lambda p: ["quantize", f"{p}/in/net.onnx", *_calib(p), "-o", f"{p}/out/net.onnx", "--effort", "fast",
                           "--report", f"{p}/out/r.json"],
    "prune": lambda p: ["prune", f"{p}/in/net.onnx", *_calib(p), "-o", f"{p}/out/net.onnx", "--sparsity", "0.5",
                        "--report", f"{p}/out/r.html"],
    "compress": lambda p: ["compress", f"{p}/in/net.onnx", *_calib(p), "-o", f"{p}/out/net.onnx", "--sparsity", "0.5",
                           "--effort", "fast", "--keep-stages", f"{p}/out/stages"],
    "emit": lambda p: ["emit", f"{p}/in/net.onnx", "--to", "onnx,openvino", "-o", f"{p}/out/net.onnx"],
    "calibrate": lambda p: ["calibrate", f"{p}/in/net.onnx", *_calib(p), "-o", f"{p}/out/stats.npz"],
    "bundle": lambda p: ["quantize", f"{p}/in/net.onnx", *_calib(p), "-o", f"{p}/out/net.onnx", "--effort", "fast",
                         "--bundle", f"{p}/out/bundle"],
    "batch": lambda p: ["batch", f"{p}/in/m.yaml", "-j", "1"],
}  # fmt: skip


def _calib(place: Path) -> list[str]:
    return ["--calib", f"{place}/in/calib.npz"]


def write_inputs(place: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in "wz"}
    write(load_model(model(TEXT, weights | {"b": np.full(64, seed, np.float32)})), place / "in" / "net.onnx",
          external=True)  # fmt: skip
    np.savez(place / "in" / "calib.npz", x=rng.normal(size=(8, 1, 64)).astype(np.float32))
    manifest = {
        "models": ["net.onnx"], "targets": ["ort"], "output": f"{place}/out",
        "defaults": {"calib": "calib.npz", "emit": "onnx", "effort": "fast"},
    }  # fmt: skip
    (place / "in" / "m.yaml").write_text(json.dumps(manifest))


class InProcess(Local):
    """Cells are done in this process, so that it is killed in the middle of them."""

    def run(self, cells: Any, store: Store, done: Done) -> None:
        for cell in cells:
            part = store.part(cell)
            done(cell, part, run_cell(cell, part, settings_of(cell, self.how)))


def answers(place: Path) -> dict[str, Any]:
    """What every model that is there answers, by its path: those of OpenVINO from another process."""
    found: dict[str, Any] = {}
    for path in sorted((place / "out").rglob("*.onnx")):
        if not is_half_made(path):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found[str(path.relative_to(place))] = session.run(None, {"x": X})[0].tobytes()
    irs = sorted(path for path in (place / "out").rglob("*.xml") if not is_half_made(path))
    if irs:
        with tempfile.TemporaryDirectory() as made:
            kill_points.run(lambda: _ask_openvino(irs, Path(made)))
            found |= {str(p.relative_to(place)): (Path(made) / f"{i}.npy").read_bytes() for i, p in enumerate(irs)}
    return found


def _ask_openvino(irs: list[Path], made: Path) -> None:
    import openvino

    for i, path in enumerate(irs):
        np.save(made / f"{i}.npy", openvino.Core().compile_model(str(path), "CPU")(X)[0])


def is_half_made(path: Path) -> bool:
    """Whether it lies in a folder of a run under way."""
    return any("onnxshot-" in part or part == ".parts" for part in path.parts)


def is_timed(path: Path) -> bool:
    return path.suffix in TIMED


def check_whole(place: Path, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """Every file that a reader may come upon is the old one or the new one."""
    for path in sorted((place / "out").rglob("*")):
        name = path.relative_to(place).as_posix()
        if not path.is_file() or is_half_made(path) or path.suffix in (".onnx", ".xml", ".bin", ".data", ".jsonl"):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif not is_timed(path):
            assert path.read_bytes() in (old.get(name), new.get(name)), name
    if (place / "out" / "bundle").exists():
        check_files(place / "out" / "bundle", read_manifest(place / "out" / "bundle"))
    for row in (place / "out").glob("*/*/cell.json"):
        for made in json.loads(row.read_text("utf-8"))["outputs"]:
            assert sha256(row.parent / made["file"]) == made["sha256"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "place"
    for name in ("in", "out", "tmp"):
        (place / name).mkdir(parents=True)
    monkeypatch.setenv("ONNXSHOT_CACHE", str(place / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    monkeypatch.setattr(sys.modules["onnxshot.batch.run"], "Local", InProcess)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def sweep(place: Path, verb: str, step: int) -> int:
    """Kill the verb at every step-th moment; how many moments that were."""
    command = VERBS[verb](place)

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        app.app([*command, *QUICK], standalone_mode=False)

    template = place.with_name("before")
    write_inputs(place, 1)
    kill_points.run(work)
    (place / "out" / "net.onnx.part").write_text("mine")
    for folder in (place / "out" / "bundle", place / "out" / "net" / "ort"):
        if folder.is_dir() and verb == "batch":
            (folder / "notes.txt").write_text("mine")
    write_inputs(place, 2)
    shutil.copytree(place, template, symlinks=True)
    before, old = kill_points.contents(place, apart=is_timed), answers(place)
    kill_points.run(work)
    whole, new = kill_points.contents(place, apart=is_timed), answers(place)
    assert old.keys() == new.keys()
    assert verb == "calibrate" or any(name.endswith("net.onnx.data") and name.startswith("out/") for name in whole)
    assert verb == "calibrate" or all(old[name] != new[name] for name in old)
    assert not any("onnxshot-" in name or ".parts" in name for name in whole)
    moments = 0
    for at in kill_points.every_moment(work, template, place, step):
        moments += 1
        found = answers(place)
        for name, answer in old.items():
            assert found[name] in (answer, new[name]), (at, name)
        check_whole(place, before, whole)
        inputs = {name: data for name, data in kill_points.contents(place).items() if name.startswith("in/")}
        assert all(data == before[name] for name, data in inputs.items() if before.get(name)), at
        kill_points.run(work)
        again = kill_points.contents(place, apart=is_timed)
        assert again == whole, (at, sorted(set(again) ^ set(whole)) or [n for n in whole if again[n] != whole[n]])
        assert answers(place) == new, at
    return moments


STEP = int(os.environ.get("KILL_STEP", "3"))
"""Every third moment, in a quarter of an hour; KILL_STEP=1 takes all."""


def test_killed_at_a_few_moments(home: Path) -> None:
    assert sweep(home, "compress", 71) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_any_moment(home: Path, verb: str) -> None:
    if verb == "emit" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    moments = sweep(home, verb, STEP)
    print(f"{verb}: {moments} moments")
    assert moments * STEP >= 60
