"""The same cells as tasks of a cluster of three nodes. Skipped where Ray is not installed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_examples import artifacts, manifest, two_models
from handmade import HANDMADE

from onnxshot.batch import run
from onnxshot.calibration.readers import split
from onnxshot.calibration.sampling import spread

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    return two_models(tmp_path)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Any]:
    """Three nodes of one CPU each, started with the environment of this test; the first holds what is global."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def inferences(output: Path) -> list[int]:
    """How many samples each cell has run to calibrate."""
    return [json.loads(p.read_text())["samples"]["inferences"] for p in output.glob("*/*/report.json")]


def many(folder: Path, n: int, growth: float = 1.0) -> str:
    """A file of n samples, each so many times as large as all that a pass which may end early runs before it."""
    shape = HANDMADE["resnet_block"]().feeds[0]["x"].shape
    x = np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)
    for place, number in enumerate(spread(len(split(n)[0]))):
        x[number] *= growth**place
    np.savez(folder / "many.npz", x=x)
    return "many.npz"


@pytest.mark.parametrize(
    ("samples", "n", "growth", "told"),
    [
        ("auto", 120, 1.0, "48 samples in 3 tasks"),
        ("auto", 120, 1.05, "90 samples in 8 tasks"),  # 48, 16 and 26 samples: in three tasks, two and three
        ("auto", 12, 1.0, "9 samples in 3 tasks"),
        (60, 120, 1.0, "45 samples in 3 tasks"),
        ("all", 120, 1.0, "90 samples in 3 tasks"),
    ],
    ids=["settles", "grows", "few", "number", "all"],
)
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_cluster_calibrates_in_parts_and_makes_the_same_files(
    folder: Path, cluster: Any, samples: int | str, n: int, growth: float, told: str, effort: str
) -> None:
    how = {"calib": many(folder, n, growth), "emit": "onnx", "samples": samples, "effort": effort}
    run(manifest(folder, defaults=how, output="near"), workers=2, use_cache=False)
    summary = run(manifest(folder, defaults=how, output="far"), engine="ray", use_cache=False)
    assert [row["verdict"] for row in summary.rows] == ["ok"] * 4
    assert [row["calibration"] for row in summary.rows] == [told] * 4
    assert artifacts(folder / "far") == artifacts(folder / "near")
    first = int(told.split()[0])  # of the pass that goes into parts: a model that is equalized is run again
    assert inferences(folder / "far") == [count - first for count in inferences(folder / "near")]


def test_what_is_not_calibrated_in_parts_says_why(folder: Path, cluster: Any) -> None:
    samples = np.load(folder / "calib.npz")["x"]
    np.savez(folder / "twice.npz", x=np.concatenate([samples, samples, samples[:1]]))
    bad = samples.copy()
    bad[0] = np.nan
    np.savez(folder / "bad.npz", x=bad)
    (folder / "samples.py").write_text(
        f"""import numpy as np
def same():
    yield from ({{"x": x}} for x in np.load({str(folder / "calib.npz")!r})["x"])
def other():
    rng = np.random.default_rng()
    yield from ({{"x": rng.standard_normal({samples.shape[1:]}).astype("f4")}} for _ in range(6))
"""
    )
    stages = {"stages": [{"prune": {"sparsity": 0.5}}, {"quantize": {"effort": "fast"}}]}
    asked: dict[str, tuple[dict[str, Any], str]] = {
        "twice": ({"calib": "twice.npz"}, " tasks"),
        "function": ({"calib": "samples.py:same"}, " tasks"),
        "other": ({"calib": "samples.py:other"}, "by itself: another process saw other samples"),
        "noise": ({"calib": "random"}, "by itself: noise is made where it is used"),
        "stages": ({"recipe": stages}, "by itself: each stage calibrates on what the stage before it has made"),
        "dynamic": ({"mode": "dynamic"}, "by itself: its recipe needs no ranges"),
        "nan": ({"calib": "bad.npz"}, "by itself: its task failed: "),
    }
    models = [{"model": "one.onnx", "name": name, **values} for name, (values, _) in asked.items()]
    summary = run(manifest(folder, models=models, targets=["ort"], output="far"), engine="ray")
    rows = {row["name"]: row for row in summary.rows}
    assert {name: row["calibration"] for name, row in rows.items() if asked[name][1] not in row["calibration"]} == {}
    assert {name for name, row in rows.items() if row["verdict"] == "failed"} == {"nan"}
    assert "NaN or infinite" in rows["nan"]["error"]
    run(manifest(folder, models=models, targets=["ort"], output="near"))
    near, far = artifacts(folder / "near"), artifacts(folder / "far")
    assert {k: v for k, v in far.items() if "other" not in k} == {k: v for k, v in near.items() if "other" not in k}


def test_nothing_is_lost_with_a_node(folder: Path, cluster: Any) -> None:
    models = [{"model": "one.onnx", "name": f"m{i}", "seed": i} for i in range(4)]
    run(manifest(folder, models=models, output="near"), workers=2)
    seen: list[dict[str, Any]] = []
    killed: list[float] = []

    def kill() -> None:
        while len(seen) < 2:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        killed.append(len(seen))

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(manifest(folder, models=models, output="far"), engine="ray", told=seen.append)
    killer.join()
    assert killed
    assert killed[0] < 8, "the node was killed while cells were left"
    assert [row["verdict"] for row in summary.rows] == ["ok"] * 8
    assert artifacts(folder / "far") == artifacts(folder / "near")
