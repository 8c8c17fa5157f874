"""The node test cases that the onnx package carries: what ORT runs as given gives the same after onnxshot."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def outcomes(transform: str) -> dict[str, tuple[str, str]]:
    """Case name -> ('ok', 'failed' or 'not run', why). A case that ends the process is 'not run' where ORT did it."""
    found: dict[str, tuple[str, str]] = {}
    first, done = 0, False
    while not done:
        command = [sys.executable, Path(__file__).parents[1] / "helpers" / "node_case_worker.py", transform, str(first)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
        name, stage = "", ""
        for stage, *rest in map(json.loads, run.stdout.splitlines()):
            if stage == "begin":
                first, name = rest[0] + 1, rest[1]
            elif stage == "end":
                found[name] = (rest[0], rest[1])
        assert stage, run.stderr
        done = run.returncode == 0
        if not done:
            found[name] = ("not run" if stage == "begin" else "failed", f"the process ended with {run.returncode}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["save", "normalize", "weights"])
def test_node_cases_give_the_same_outputs(transform: str) -> None:
    found = outcomes(transform)
    counts = Counter(status for status, _ in found.values())
    print(f"{transform}: {dict(counts)}")
    failed = [f"{name}: {why}" for name, (status, why) in found.items() if status == "failed"]
    assert not failed, "\n".join(failed)
    assert counts["ok"] > 1000
