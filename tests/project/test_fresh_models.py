"""How the benchmark of trained models judges outputs, against figures worked out by hand."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import fresh_models


def test_a_quiet_output_counts_as_much_as_a_loud_one():
    loud, quiet = np.full((1, 4), 1000.0, np.float32), np.full((1, 4), 0.001, np.float32)
    found = fresh_models.distance_by_output(["loud", "quiet"], [[loud, quiet]], [[loud * 1.01, quiet * 1.1]])
    assert found["worst_db"] == pytest.approx(20, abs=0.01)  # 10 % of its amplitude
    assert found["db"] == pytest.approx(-10 * math.log10((0.01**2 + 0.1**2) / 2), abs=0.01)


def test_a_longer_output_is_compared_where_both_are():
    found = fresh_models.distance_by_output(["y"], [[np.ones((1, 5))]], [[np.ones((1, 3)) * 2]])
    assert found["outputs"]["y"] == 1.0


A, B = np.array([[0.1, 0.7, 0.6, 0.2]]), np.array([[0.2, 0.6, 0.4, 0.9]])


@pytest.mark.parametrize(
    ("task", "share"),
    [
        ({"agree": "over", "threshold": 0.5}, 1 / 3),  # both: 1; either: 1, 2, 3
        ({"agree": "near", "within": 0.15}, 2 / 4),
        ({"agree": "ratio", "within": 0.2}, 1 / 4),
        ({"agree": "argmax"}, 0.0),
        ({"agree": "argmax", "least": 0.8}, None),  # no position to judge
        ({"agree": "cosine", "within": 0.7}, 1.0),  # 0.86 over 1.11
        ({"agree": "cosine", "within": 0.8}, 0.0),
        ({"agree": None}, None),
    ],
)
def test_agreement(task, share):
    cosine = float((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B))
    assert 0.7 < cosine < 0.8
    assert fresh_models.agreement({"outputs": ["y"], **task}, ["y"], [[A]], [[B]]) == share


def test_agreement_where_another_output_says_so():
    task = {"agree": "near", "within": 0.15, "outputs": ["y"], "where": "sure", "least": 0.5}
    sure = np.array([[0.0, 1.0, 1.0, 0.0]])
    assert fresh_models.agreement(task, ["y", "sure"], [[A, sure]], [[B, sure]]) == 1 / 2


def test_peaks_may_move_by_one_cell():
    maps = np.zeros((1, 3, 5, 5))
    maps[0, :, 2, 2] = 1
    moved = np.zeros((1, 3, 5, 5))
    moved[0, 0, 2, 2] = moved[0, 1, 3, 1] = moved[0, 2, 2, 4] = 1
    task = {"agree": "peak", "channels": 3, "outputs": ["y"]}
    assert fresh_models.agreement(task, ["y"], [[maps]], [[moved]]) == 2 / 3


def test_tables_tell_where_another_tool_is_better():
    def way(db, speed):
        return {
            "db": db,
            "worst_db": db,
            "agreement": 0.5,
            "speed": speed,
            "bytes": 2e6,
            "float_bytes": 8e6,
            "cpu_s": 3,
            "peak_mb": 100,
        }

    ways = {
        "onnxshot": way(30.0, 2.0),
        "NNCF": way(31.0, 2.0),
        "Quark": way(31.0, 1.5),
        "onnxruntime, dynamic": {"error": "x"},
    }
    said = fresh_models.tables({"net": {"ways": ways, "task": "t", "source": "s"}})
    assert "| `net` | 30.0 | 30.0 | 50.0 % | 2.00x | 8.00 → 2.00 | 3 | - |" in said
    assert "| `net` | 30.0 dB, 2.00x | fails | 31.0 dB, 2.00x | 31.0 dB, 1.50x |" in said
    assert [line for line in said.splitlines() if line.startswith("- ")] == [
        "- `net`: NNCF 31.0 dB, 2.00x, onnxshot 30.0 dB, 2.00x"
    ]
    assert "| NNCF | 1 | 0 | 1 / 1 | 31.0 / 30.0 | 2.00x / 2.00x | 3.0 / 3.0 | 100 / 100 |" in said
    assert "| onnxruntime, dynamic | 1 | 1 | 0 / 1 | - | - | - | - |" in said
