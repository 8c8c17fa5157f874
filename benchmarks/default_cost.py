"""What compression costs beside plain inference: `python benchmarks/default_cost.py FOLDER...`, a Markdown table.

A FOLDER has model.onnx and calib/, and meta.json where the samples are pictures; or it holds such folders. bare.py
reads all samples and runs the float model on them, one by one, by ONNX Runtime's defaults and with threads that sleep
while they wait; the others are `onnxshot` with the same samples. All are whole processes, run in turns within one call,
without a cache. Ratios are medians over the rounds, of CPU seconds and of wall seconds; other numbers are medians too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from memory import jobs
from processes import Cost, in_turns, ratio
from readme import THREADS, Job, head, table

BARE = Path(__file__).resolve().parent / "bare.py"
WAYS: dict[str, tuple[str, ...]] = {
    "proof": ("quantize",),
    "no proof": ("quantize", "--no-verify"),
    "8 samples": ("quantize", "--samples", "8"),
    "all samples": ("quantize", "--samples", "all"),
    "fast": ("quantize", "--effort", "fast"),
    "best": ("quantize", "--effort", "best"),
    "dynamic": ("quantize", "--mode", "dynamic"),
    "weights": ("quantize", "--mode", "weights"),
    "prune": ("prune", "--sparsity", "0.5"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["proof", "no proof"])
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run; the median counts")
    args = parser.parse_args()
    head("model", "way", "CPU s", "/ bare", "s", "/ bare", "peak MB", "/ bare", "SQNR dB")
    with tempfile.TemporaryDirectory() as made:
        for job in jobs(args.folders, Path(made)):
            if args.models is None or job.name in args.models:
                commands = {"bare": bare(job, Path(made))}
                commands["bare, asleep"] = [*commands["bare"], "asleep"]
                commands |= {way: onnxshot(job, Path(made) / "out.onnx", WAYS[way]) for way in args.ways}
                found = in_turns(commands, args.rounds)
                for way, rows in found.items():
                    table(f"`{job.name}`", way, *cells(rows, found["bare"]))


def bare(job: Job, folder: Path, samples: int | None = None) -> list[str]:
    """The command of bare.py on as many samples as calibration and proof see, or on that many."""
    preset = folder / f"{job.name}.json"
    preset.write_text(json.dumps(yaml.safe_load(Path(job.preset).read_text()) if job.preset else {}))
    count = samples or sum(path.is_file() for path in job.calib.rglob("*"))
    return [sys.executable, str(BARE), str(job.model), str(job.calib), str(preset), str(count)]


def onnxshot(job: Job, out: Path, options: Sequence[str]) -> list[str]:
    line = [str(Path(sys.executable).with_name("onnxshot")), options[0], str(job.model), "--calib", str(job.calib)]
    line += ["-o", str(out), *options[1:], *(["--preset", job.preset] if job.preset else [])]
    return [*line, "--threads", str(THREADS), "--json", *([] if options[0] == "prune" else ["--no-cache"])]


def cells(rows: Sequence[Cost], base: Sequence[Cost]) -> list[str]:
    found = []
    for of, digits in ((_cpu, 2), (_wall, 2), (_peak, 0)):
        found += [f"{statistics.median(map(of, rows)):.{digits}f}", f"{ratio(rows, base, of):.2f}"]
    output = rows[-1].output
    db = json.loads(output).get("sqnr_db") if output else None
    return [*found, "" if db is None else f"{db:.2f}"]


def _cpu(one: Cost) -> float:
    return one.cpu


def _wall(one: Cost) -> float:
    return one.wall


def _peak(one: Cost) -> float:
    return one.peak


if __name__ == "__main__":
    main()
