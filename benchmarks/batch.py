"""A batch against the same runs one by one: `python benchmarks/batch.py [--zoo FOLDER] [--models 12] [--jobs 2]`.

Models of fixtures/ or of a zoo, and as many copies of them with other weights as it takes, for two targets. Single runs
are `onnxshot quantize` in processes of their own without a cache, and so without what a batch shares. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import yaml
from readme import THREADS, Job, fixture_jobs, head, table, zoo_jobs

TARGETS = ("ort", "openvino")
ONNXSHOT = (sys.executable, "-c", "from onnxshot.cli.app import entry; entry()")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", type=int, default=12, help="how many, copies included")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--max-memory", type=float, default=None, metavar="MB")
    parser.add_argument("--only", nargs="+", help="only these models, and copies of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, folder)
        jobs = [job for job in jobs if not job.options and (args.only is None or job.name in args.only)]
        jobs = copies(jobs, args.models, folder)
        single = alone(jobs, folder)
        bounds = [None] if args.max_memory is None else [None, args.max_memory]
        head("way", "cells", "seconds", "of single runs", "peak MB, all processes", "same bytes")
        table("single runs", str(len(single)), f"{sum(single.values()):.0f}", "1.00", "", "")
        for bound in bounds:
            output = folder / f"out.{bound}"
            seconds, peak = together(jobs, folder, output, args.jobs, bound)
            same = sum(equal(folder / "alone" / place, output / place) for place in single)
            way = f"batch -j {args.jobs}" + (f" --max-memory {bound:g}" if bound else "")
            share = seconds / sum(single.values())
            table(way, str(len(single)), f"{seconds:.0f}", f"{share:.2f}", f"{peak:.0f}", f"{same} of {len(single)}")
        print(f"\nload of the machine now: {os.getloadavg()[0]:.1f}")
        print(f"seconds of single runs: {json.dumps({k: round(v, 1) for k, v in single.items()})}")


def copies(jobs: Sequence[Job], wanted: int, folder: Path) -> list[Job]:
    """The jobs, and copies whose float weights are a little larger, until there are enough."""
    found: list[Job] = []
    for i in count():
        for job in jobs:
            if len(found) == wanted:
                return found
            path = folder / "models" / f"{job.name}-{i}.onnx"
            path.parent.mkdir(exist_ok=True)
            model = onnx.load(job.model)
            for w in model.graph.initializer:
                if i and w.data_type == onnx.TensorProto.FLOAT and len(w.dims) > 1:
                    larger = onnx.numpy_helper.to_array(w) * np.float32(1 + i / 1000)
                    w.CopyFrom(onnx.numpy_helper.from_array(larger, w.name))
            model.doc_string = f"copy {i}"
            onnx.save(model, str(path))
            found.append(replace(job, name=path.stem, model=path))
    return found


def alone(jobs: Sequence[Job], folder: Path) -> dict[str, float]:
    """Seconds of every cell, by its place, in a process of its own."""
    seconds = {}
    for job in jobs:
        for target in TARGETS:
            place = f"{job.name}/{target}"
            output = folder / "alone" / place / f"{job.name}{'.xml' if target == 'openvino' else '.onnx'}"
            preset = ("--preset", job.preset) if job.preset else ()
            command = [*ONNXSHOT, "quantize", str(job.model), "--calib", str(job.calib), *preset, "--target", target]
            started = time.perf_counter()
            subprocess.run([*command, "-o", str(output), "--no-cache", "--threads", str(THREADS), "--json"],
                check=True, capture_output=True)  # fmt: skip
            seconds[place] = time.perf_counter() - started
    return seconds


def together(jobs: Sequence[Job], folder: Path, output: Path, workers: int, bound: float | None) -> tuple[float, float]:
    """(seconds, peak MB of all processes) of a batch with an empty cache."""
    models = [
        {"model": str(job.model.resolve()), "name": job.name, "calib": str(job.calib.resolve())}
        | ({"preset": str(Path(job.preset).resolve()) if "/" in job.preset else job.preset} if job.preset else {})
        for job in jobs
    ]
    manifest = folder / "manifest.yaml"
    manifest.write_text(yaml.safe_dump({"models": models, "targets": list(TARGETS), "output": str(output)}))
    command = [*ONNXSHOT, "batch", str(manifest), "-j", str(workers), "--threads", str(THREADS), "--json"]
    command += ["--max-memory", str(bound)] if bound else []
    started = time.perf_counter()
    env = os.environ | {"ONNXSHOT_CACHE": str(folder / f"cache.{bound}")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return time.perf_counter() - started, json.loads(done.stdout)["peak_rss_mb"]


def equal(folder: Path, other: Path) -> bool:
    """Whether all artifacts of a single run are there in a batch, byte by byte."""
    return all((other / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


if __name__ == "__main__":
    main()
