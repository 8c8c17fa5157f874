"""Hold what a goal finds against the best mix of groups that an exhaustive search finds.

For each model of a folder (a subfolder with model.onnx and calib/), `--min-sqnr DB` is run. Then every subset of at
most 8 groups of its plan is put into float and measured on held-out samples. Of those that reach the goal, the ones
that should be the fastest by the times of their kernels are timed against the result found, in turns, by CPU time.

    python benchmarks/goal_search.py --models FOLDER [NAME ...] --db 20
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import onnxshot
from onnxshot.calibration.batches import batched
from onnxshot.graph.save import write
from onnxshot.planning.groups import PlanGroup
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_bench import bench
from onnxshot.search.goal import Goal, Judge
from onnxshot.search.workbench import workbench
from onnxshot.settings import Settings

MOST_GROUPS = 8
TIMED = 6  # subsets that are timed


def main() -> None:
    """Print a row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="subfolders; default: all")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--db", type=float, default=20.0)
    parser.add_argument("--groups", type=int, default=MOST_GROUPS, help="most groups; each doubles the subsets")
    asked = parser.parse_args()
    every = sorted(path.parent for path in asked.models.glob("*/model.onnx"))
    folders = [asked.models / name for name in asked.names] or every
    print("| model | all int8 dB | found dB | candidates | s | best subset dB | subsets | s | speed, found over best |")
    print("|---|---|---|---|---|---|---|---|---|")
    for folder in folders:
        print(row(folder, asked.db, asked.groups), flush=True)


def row(folder: Path, db: float, most: int) -> str:
    """The row of one model."""
    settings, goal = Settings(threads=1, use_cache=False, search_seconds=0.0), Goal(min_sqnr=db)
    with tempfile.TemporaryDirectory() as place:
        started, out = time.perf_counter(), Path(place) / "found.onnx"
        found = onnxshot.tune(folder / "model.onnx", folder / "calib", goal, settings=settings, output=out).report.goal
        searched, started = time.perf_counter() - started, time.perf_counter()
        model, calib = folder / "model.onnx", folder / "calib"
        with workbench(model, calib, recipe=Recipe(), settings=settings) as made:
            judge = Judge(goal, model, batched(made.held_out, made.prepared.fixed_shapes.inputs), settings)
            trials = made.trials(lambda _: 0.0, lambda: None)
            trials.choose_samples()
            trials.settle(db)
            groups = _joined(trials.groups(), most)
            form = trials.in_float
            reached, base, count = [], 0.0, 0
            for number in range(len(groups)):  # all in float is no result
                for subset in itertools.combinations(groups, number):
                    forms = frozenset((label, form) for group in subset for label in group.nodes)
                    path = Path(place) / f"{count}.onnx"
                    write(made.build(trials.recipe_of(forms)), path)
                    reaches, count = judge.measure(path, ()).sqnr_db, count + 1
                    base = base if subset else reaches
                    if reaches >= db:
                        reached.append((sum(trials.milliseconds(group, form) for group in subset), reaches, path))
                    else:
                        path.unlink()
            reached.sort(key=lambda one: one[0])
            first = [path for _, _, path in reached[:TIMED]]
            feeds = [made.held_out[i].feed for i in range(min(len(made.held_out), 4))]
            timed = bench([out, *first], feeds, threads=1, seconds=3.0, rounds=10_000) if first else []
        exhaustive = time.perf_counter() - started
    name = folder.name
    if not timed:
        missed = "" if found["reached"] else " (missed)"
        first = f"| {name} | {base:.1f} | {found['sqnr_db']:.1f}{missed} | {found['candidates']} | {searched:.0f} "
        return f"{first}| none | {count} | {exhaustive:.0f} | |"
    ratios = [one.cpu_ratio or one.ratio for one in timed]
    best = max(range(1, len(timed)), key=lambda i: ratios[i])
    return (
        f"| {name} | {base:.1f} | {found['sqnr_db']:.1f} | {found['candidates']} | {searched:.0f} | "
        f"{reached[best - 1][1]:.1f} | {count} | {exhaustive:.0f} | {1 / ratios[best]:.2f} |"
    )


def _joined(groups: list[PlanGroup], most: int) -> list[PlanGroup]:
    """At most so many groups of all nodes: the smallest neighbours are joined first."""
    while len(groups) > most:
        i = min(range(len(groups) - 1), key=lambda i: len(groups[i].nodes) + len(groups[i + 1].nodes))
        joined = PlanGroup("chain", (*groups[i].nodes, *groups[i + 1].nodes))
        groups = [*groups[:i], joined, *groups[i + 2 :]]
    return groups


if __name__ == "__main__":
    main()
