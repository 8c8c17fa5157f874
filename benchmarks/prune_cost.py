"""What pruning with data costs: `python benchmarks/prune_cost.py FOLDER...`, a Markdown table.

A FOLDER is that of default_cost.py: with model.onnx and calib/. All are whole processes, run in turns within one call:
bare.py, which reads all samples and runs the float model on them; `onnxshot prune --sparsity 0.5`; with --blas the same
with BLAS on all cores, as numpy has it by default; with --busy all again while other processes keep all cores busy.
Ratios are to bare.py on an idle machine, medians over the rounds. CPU seconds of a busy machine are larger by
themselves, since caches and cores are shared: `bare, busy` shows by how much.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from default_cost import bare, cells, onnxshot
from memory import jobs
from processes import Cost, cost
from readme import head, table

SPIN = "import itertools\nfor _ in itertools.count(): pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--sparsity", default="0.5")
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--blas", action="store_true", help="also with BLAS on all cores")
    parser.add_argument("--busy", action="store_true", help="also while other processes keep all cores busy")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run; the median counts")
    args = parser.parse_args()
    head("model", "way", "CPU s", "/ bare", "s", "/ bare", "peak MB", "/ bare", "SQNR dB")
    with tempfile.TemporaryDirectory() as made:
        for job in jobs(args.folders, Path(made)):
            if args.models is not None and job.name not in args.models:
                continue
            options = ("prune", "--sparsity", args.sparsity, "--pattern", args.pattern)
            pruned = onnxshot(job, Path(made) / "out.onnx", options)
            ways = {"bare": bare(job, Path(made)), "prune": pruned}
            if args.blas:
                ways["prune, BLAS on all cores"] = ["env", f"OPENBLAS_NUM_THREADS={os.cpu_count()}", *pruned]
            found = measured(ways, args.rounds, busy=args.busy)
            for way, rows in found.items():
                table(f"`{job.name}`", way, *cells(rows, found["bare"]))


def measured(ways: dict[str, list[str]], rounds: int, *, busy: bool) -> dict[str, list[Cost]]:
    """The cost of every way in every round; all run once a round, then all once beside a busy process."""
    found: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, command in ways.items():
            found.setdefault(name, []).append(cost(command))
        if busy:
            with busy_cores():
                for name, command in ways.items():
                    found.setdefault(f"{name}, busy", []).append(cost(command))
    return found


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many spinning processes as there are cores."""
    spinning: Sequence[subprocess.Popen[bytes]] = [
        subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


if __name__ == "__main__":
    main()
