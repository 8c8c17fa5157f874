"""Files on several versions of ONNX Runtime: `python benchmarks/runtimes.py [FOLDER ...] --make FOLDER`, Markdown.

Each model is quantized once, here. Each version, in an environment of its own, then tells the speed in turns with the
float file on the same version, the SQNR against it, and what it runs: the share of work on integers, by its profile.
Without folders, the models of fixtures/; a folder is an entry (model.onnx, calib/, and meta.json with an optional
"preset"), or a folder of entries. Files are judged on samples that calibration kept out.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from counting import is_int8, kernels, macs, numbered, of_profile
from executed import Job, fixtures, jobs_of
from readme import head, table

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.errors import OnnxshotError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.settings import Settings

VERSIONS = ("1.18.1", "1.20.1", "1.22.0", "1.23.2", "1.26.0", "")  # the last one: the newest
SAMPLES = 16  # that a file is judged on, at most
LIMIT_SECONDS = 600.0
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="interpreters, or VERSION=INTERPRETER")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make environments there with venv and pip")
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="those that --make makes; '' is the newest")
    parser.add_argument("--only", default="*", help="names of models, as a glob")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each file is timed")
    parser.add_argument("--threads", type=int, default=2, help="with 1, the CPU time of the thread is told")
    parser.add_argument("--target", default="ort")
    args = parser.parse_args()
    pythons = [given(text) for text in args.python]
    pythons += [made(args.make, version) for version in args.versions] if args.make else []
    if not pythons:
        parser.error("no environments: give --python or --make")
    head("model", "ONNX Runtime", "speed", "int8", "SQNR dB", "MB of float", "MB")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for path in args.paths for job in jobs_of(path, Path(folder))] if args.paths else fixtures()
        for job in jobs:
            if fnmatch.fnmatch(job.name, args.only):
                lines(job, pythons, Path(folder), args)


def given(text: str) -> tuple[str, Path]:
    """(version, interpreter) of a --python; its version is checked when it runs."""
    version, _, path = text.rpartition("=")
    return version, Path(path)


def made(folder: Path, version: str) -> tuple[str, Path]:
    """An environment with this version of onnxruntime, made where it is not there."""
    place = folder / f"ort-{version or 'newest'}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        wanted = f"onnxruntime=={version}" if version else "onnxruntime"
        subprocess.run([str(python), "-m", "pip", "install", "-q", wanted, "numpy"], check=True)
    return version, python


def lines(job: Job, pythons: list[tuple[str, Path]], folder: Path, args: argparse.Namespace) -> None:
    """Quantize a model, and print a line for every version."""
    int8 = folder / "int8.onnx"
    try:
        settings = Settings(use_cache=False, bench_seconds=0.01, threads=args.threads)
        options = {"effort": args.effort, "target": args.target}
        onnxshot.quantize(job.model, job.calib, output=int8, preset=job.preset, settings=settings, **options)
        with open_calib(job.calib, load_model(job.model), job.preset, settings) as data:
            judged = (split(len(data))[1] or list(range(len(data))))[:SAMPLES]
            feeds = [dict(data[i].feed) for i in judged]
    except OnnxshotError as e:
        table(f"`{job.name}`", str(e).splitlines()[0][:90], *[""] * 5)
        return
    everything = sum(map(macs, kernels(int8, feeds[0], optimize=False)))
    sizes = [f"{path.stat().st_size / 1e6:.2f}" for path in (job.model, int8)]
    for version, python in pythons:
        found = measured_there(python, job.model, int8, feeds, args)
        told = found.get("version", version)
        if version and told != version:
            found["why"] = f"the environment has {told}"
        if "why" in found:
            table(f"`{job.name}`", version or told, found["why"][:90], "", "", *sizes)
            continue
        share = f"{100 * found['integers'] / everything:.1f} %" if everything else "-"
        ratio, width, _ = found["speed"]
        db = "-" if found["db"] is None else f"{found['db']:.2f}"
        table(f"`{job.name}`", told, f"{ratio:.2f}x ± {width:.2f}", share, db, *sizes)


def measured_there(
    python: Path, model: Path, int8: Path, feeds: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """What the worker found in another environment, with the work that it ran on integers; or why nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "numbered.onnx").write_bytes(numbered(int8))
        for i, feed in enumerate(feeds):
            np.savez(out / f"{i}.npz", **feed)
        job = {
            "float": str(model), "int8": str(int8), "numbered": str(out / "numbered.onnx"), "out": folder,
            "feeds": [str(out / f"{i}.npz") for i in range(len(feeds))],
            "seconds": args.seconds, "threads": args.threads,
        }  # fmt: skip
        (out / "job.json").write_text(json.dumps(job))
        command = [str(python), str(HERE / "runtimes_worker.py"), str(out / "job.json")]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as e:
            return {"why": str(e).splitlines()[0]}
        if not (out / "answer.json").exists():
            return {"why": f"ended with {ended.returncode}: {(ended.stderr.strip().splitlines() or [''])[-1]}"}
        found: dict[str, Any] = json.loads((out / "answer.json").read_text())
        if "why" in found:
            return found
        events = json.loads(Path(found["profile"]).read_text())
        graph = onnx.load(str(out / "optimized.onnx"), load_external_data=False).graph
        ran = of_profile(events, graph, feeds[0])
        return found | {"integers": sum(macs(kernel) for kernel in ran if is_int8(kernel[0]))}


if __name__ == "__main__":
    main()
