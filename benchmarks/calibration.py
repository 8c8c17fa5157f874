"""What calibration costs, and what that buys: `python benchmarks/calibration.py PART... --zoo FOLDER [--models ...]`.

Parts, each a Markdown table:
    whole      seconds of the whole command against bare.py, which reads the samples and runs float inference
    methods    seconds of every range method against minmax
    memory     peak memory with 8 and with 256 samples, against bare.py
    peers      onnxruntime.quantization on the same samples: seconds, peak memory, SQNR
    precision  SQNR with the subsample against SQNR with every value, by method
    designs    milliseconds a sample of several ways to observe a model

Everything that is compared runs in turns in one call, in processes of its own, and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import calibration_inside as inside
import yaml
from readme import MEASURE, THREADS, Job, fixture_jobs, head, table, zoo_jobs

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse", "auto")
HERE = Path(__file__).resolve().parent
PEER = HERE / "peer.py"
AS_INSTALLED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""With that set, Python would compile onnxshot anew in every process; pip leaves it compiled."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is run; the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, folder)
        chosen = [job for job in jobs if not job.options and (args.models is None or job.name in args.models)]
        for part in args.parts:
            PARTS[part](chosen, folder, args.rounds)
            print(flush=True)


def measured(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """(seconds, peak MB, standard output) of a process."""
    peak = folder / "peak"
    start = time.perf_counter()
    line = [sys.executable, "-S", "-c", MEASURE, str(peak), *command]
    done = subprocess.run(line, capture_output=True, text=True, env=AS_INSTALLED)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return seconds, int(peak.read_text()) * 1024 / 1e6, done.stdout


def in_turns(commands: dict[str, list[str]], folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and peak MB of every command in every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(measured(command, folder)[:2])
    return found


def bare(job: Job, folder: Path, samples: int | None = None) -> list[str]:
    """The command of bare.py on as many samples as calibration and proof see, or on that many."""
    preset = folder / f"{job.name}.json"
    preset.write_text(json.dumps(yaml.safe_load(Path(job.preset).read_text()) if job.preset else {}))
    count = samples or sum(p.is_file() for p in job.calib.rglob("*"))
    return [sys.executable, str(HERE / "bare.py"), str(job.model), str(job.calib), str(preset), str(count)]


def onnxshot(job: Job, folder: Path, *options: str, command: str = "quantize", calib: Path | None = None) -> list[str]:
    out = str(folder / ("out.onnx" if command == "quantize" else "out.npz"))
    program = str(Path(sys.executable).with_name("onnxshot"))
    line = [program, command, str(job.model), "--calib", str(calib or job.calib), "-o", out]
    preset = [] if job.preset is None else ["--preset", job.preset]
    effort = ["--effort", "fast"] if command == "quantize" else []  # what more costs, effort.py tells
    return [*line, *preset, *effort, "--threads", str(THREADS), "--no-cache", "--json", *options]


def ratio(found: dict[str, list[tuple[float, float]]], name: str, base: str) -> float:
    return statistics.median(a[0] / b[0] for a, b in zip(found[name], found[base], strict=True))


def seconds(found: dict[str, list[tuple[float, float]]], name: str) -> float:
    return statistics.median(row[0] for row in found[name])


def whole(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "bare s", "quantize s", "ratio", "--no-verify s", "ratio", "--no-verify --samples all s", "ratio")
    for job in jobs:
        commands = {
            "bare": bare(job, folder),
            "proof": onnxshot(job, folder),
            "plain": onnxshot(job, folder, "--no-verify"),
            "all": onnxshot(job, folder, "--no-verify", "--samples", "all"),
        }
        found = in_turns(commands, folder, rounds)
        cells = [f"{seconds(found, 'bare'):.2f}"]
        for name in ("proof", "plain", "all"):
            cells += [f"{seconds(found, name):.2f}", f"{ratio(found, name, 'bare'):.2f}"]
        table(f"`{job.name}`", *cells)


def methods(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "minmax s", *(f"{m} / minmax" for m in METHODS[1:]))
    for job in jobs:
        commands = {m: onnxshot(job, folder, "--no-verify", "--samples", "all", "--method", m) for m in METHODS}
        found = in_turns(commands, folder, rounds)
        cells = [f"{ratio(found, method, 'minmax'):.2f}" for method in METHODS[1:]]
        table(f"`{job.name}`", f"{seconds(found, 'minmax'):.2f}", *cells)


def memory(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "bare MB", "method", "MB with 8", "MB with 256", "256 / 8", "256 / (1.3 bare + 150 MB)")
    for job in jobs:
        few, many = copies(job, folder, 8), copies(job, folder, 256)
        plain = statistics.median(measured(bare(job, folder, 256), folder)[1] for _ in range(rounds))
        for method in METHODS:
            options = ("--no-verify", "--samples", "all", "--method", method)
            found = in_turns(
                {str(p): onnxshot(job, folder, *options, calib=p) for p in (few, many)}, folder, rounds
            )
            less, more = (statistics.median(row[1] for row in found[str(p)]) for p in (few, many))
            cells = [f"{plain:.0f}", method, f"{less:.0f}", f"{more:.0f}", f"{more / less:.2f}"]
            table(f"`{job.name}`", *cells, f"{more / (1.3 * plain + 150):.2f}")


def copies(job: Job, folder: Path, count: int) -> Path:
    """A folder that gives `count` samples to calibrate on, a quarter more being held out; samples repeat if need be."""
    made = folder / f"{job.name}-{count}"
    if not made.is_dir():
        made.mkdir()
        files = sorted(p for p in job.calib.rglob("*") if p.is_file())
        for i in range(-(-count * 4 // 3)):
            source = files[i % len(files)]
            (made / f"{i:04}{source.suffix}").symlink_to(source.resolve())
    return made


def peers(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "tool", "method", "seconds", "peak MB", "SQNR dB")
    for job in jobs:
        for method in ("minmax", "percentile", "entropy"):
            out = folder / "peer.onnx"
            line = [sys.executable, str(PEER), str(job.model), str(job.calib), job.preset or "none", method, str(out)]
            try:
                took, peak, _ = measured(line, folder)
                sqnr = inside.judged(job, out)
                table(f"`{job.name}`", "onnxruntime", method, f"{took:.1f}", f"{peak:.0f}", sqnr)
            except SystemExit as e:
                table(f"`{job.name}`", "onnxruntime", method, str(e).splitlines()[-1][-90:], "", "")
            mine = onnxshot(job, folder, "--no-verify", "--samples", "all", "--method", method)
            took, peak, _ = measured(mine, folder)
            sqnr = inside.judged(job, folder / "out.onnx")
            table(f"`{job.name}`", "onnxshot", method, f"{took:.1f}", f"{peak:.0f}", sqnr)


def precision(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "method", "dB with the subsample", "dB with every value", "mean loss by tensor dB")
    for job in jobs:
        for row in inside.precision(job, METHODS):
            table(f"`{job.name}`", *row)


def designs(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "design", "ms a sample", "/ inference one by one")
    for job in jobs:
        for row in inside.designs(job, rounds):
            table(f"`{job.name}`", *row)


PARTS: dict[str, Callable[[Sequence[Job], Path, int], None]] = {
    "whole": whole, "methods": methods, "memory": memory, "peers": peers, "precision": precision, "designs": designs,
}  # fmt: skip

if __name__ == "__main__":
    main()
