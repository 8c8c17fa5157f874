"""The same cells as tasks of a cluster of three nodes. Skipped where Ray is not installed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import artifacts, manifest, two_models

from onnxshot.batch import run

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


@pytest.mark.parametrize("samples", ["auto", "all"])  # with a number of samples calibration is sharded
def test_a_cluster_makes_the_same_files(folder: Path, cluster: Any, samples: str) -> None:
    how = {"calib": "calib.npz", "emit": "onnx", "samples": samples}
    run(manifest(folder, defaults=how, output="near"), workers=2)
    summary = run(manifest(folder, defaults=how, output="far"), engine="ray", use_cache=False)
    assert [row["verdict"] for row in summary.rows] == ["ok"] * 4
    assert artifacts(folder / "far") == artifacts(folder / "near")
    run_by_cells = [
        json.loads(p.read_text())["samples"]["inferences"] for p in (folder / "far").glob("*/*/report.json")
    ]
    assert all(count == 0 for count in run_by_cells) == (samples == "all")


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
