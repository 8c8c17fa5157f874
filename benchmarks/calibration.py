"""What calibration costs, and what that buys: `python benchmarks/calibration.py PART... --zoo FOLDER [--models ...]`.

Parts, each a Markdown table:
    methods    seconds of every range method against minmax
    memory     peak memory with 8 and with 256 samples, against bare.py
    peers      onnxruntime.quantization on the same samples: seconds, peak memory, SQNR
    precision  SQNR with the subsample against SQNR with every value, by method
    designs    milliseconds a sample of several ways to observe a model

Everything that is compared runs in turns in one call, in processes of its own, and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import calibration_inside as inside
from default_cost import bare
from processes import Cost, cost, in_turns, ratio
from readme import THREADS, Job, fixture_jobs, head, table, zoo_jobs

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse", "auto")
HERE = Path(__file__).resolve().parent
PEER = HERE / "peer.py"


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


def onnxshot(job: Job, folder: Path, *options: str, command: str = "quantize", calib: Path | None = None) -> list[str]:
    out = str(folder / ("out.onnx" if command == "quantize" else "out.npz"))
    program = str(Path(sys.executable).with_name("onnxshot"))
    line = [program, command, str(job.model), "--calib", str(calib or job.calib), "-o", out]
    preset = [] if job.preset is None else ["--preset", job.preset]
    effort = ["--effort", "fast"] if command == "quantize" else []  # what more costs, effort.py tells
    return [*line, *preset, *effort, "--threads", str(THREADS), "--no-cache", "--json", *options]


def seconds(one: Cost) -> float:
    return one.wall


def methods(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "minmax s", *(f"{m} / minmax" for m in METHODS[1:]))
    for job in jobs:
        commands = {m: onnxshot(job, folder, "--no-verify", "--samples", "all", "--method", m) for m in METHODS}
        found = in_turns(commands, rounds)
        cells = [f"{ratio(found[method], found['minmax'], seconds):.2f}" for method in METHODS[1:]]
        table(f"`{job.name}`", f"{statistics.median(map(seconds, found['minmax'])):.2f}", *cells)


def memory(jobs: Sequence[Job], folder: Path, rounds: int) -> None:
    head("model", "bare MB", "method", "MB with 8", "MB with 256", "256 / 8", "256 / (1.3 bare + 150 MB)")
    for job in jobs:
        few, many = copies(job, folder, 8), copies(job, folder, 256)
        plain = statistics.median(cost(bare(job, folder, 256)).peak for _ in range(rounds))
        for method in METHODS:
            options = ("--no-verify", "--samples", "all", "--method", method)
            found = in_turns({str(p): onnxshot(job, folder, *options, calib=p) for p in (few, many)}, rounds)
            less, more = (statistics.median(row.peak for row in found[str(p)]) for p in (few, many))
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
                took = cost(line)
                sqnr = inside.judged(job, out)
                table(f"`{job.name}`", "onnxruntime", method, f"{took.wall:.1f}", f"{took.peak:.0f}", sqnr)
            except SystemExit as e:
                table(f"`{job.name}`", "onnxruntime", method, str(e).splitlines()[-1][-90:], "", "")
            mine = onnxshot(job, folder, "--no-verify", "--samples", "all", "--method", method)
            took = cost(mine)
            sqnr = inside.judged(job, folder / "out.onnx")
            table(f"`{job.name}`", "onnxshot", method, f"{took.wall:.1f}", f"{took.peak:.0f}", sqnr)


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
    "methods": methods, "memory": memory, "peers": peers, "precision": precision, "designs": designs,
}  # fmt: skip

if __name__ == "__main__":
    main()
