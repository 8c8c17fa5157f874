"""Measure what docs/measured.md says, as Markdown: `python benchmarks/readme.py [--zoo FOLDER] [--models ...]`.

Every model is quantized by the command line in a process of its own, without a cache, and judged on samples that
calibration never saw. A zoo is a folder of entries: model.onnx, calib/, and meta.json with an optional "preset". Its
score.py, where it has one, is called as `score.py ENTRY CANDIDATE --json` and gives the task metric.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from processes import cost

import onnxshot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
import fixture_data

EXTRA = {"licence_lstm": ("--mode", "dynamic"), "licence_gru": ("--mode", "weights")}
METRICS = {"top1": "top-1", "top-1 accuracy": "top-1", "map50_fastestdet": "mAP50", "ctc_exact": "exact lines"}
THREADS = 2
HEAD = (
    "| model | MB | SQNR dB | metric | float | result | MACs in int8 | float ms | speed | quantize s | peak MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Job:
    """One line of a table: a model, its data, and options beyond the defaults."""

    name: str
    model: Path
    calib: Path
    preset: str | None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A model and its quantized copy on held-out data; metric in percent."""

    sqnr_db: float
    metric: str
    before: float
    after: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=3, help="how often speed is measured; the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, Path(folder))
        print(HEAD, flush=True)
        for job in jobs:
            if args.models is None or job.name in args.models:
                print(line(job, args.zoo, Path(folder) / "int8.onnx", args.repeats), flush=True)


def table(*cells: object) -> None:
    """Print one row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells: str) -> None:
    """Print the head of a Markdown table."""
    table(*cells)
    print("|" + "---|" * len(cells), flush=True)


def fixture_jobs() -> list[Job]:
    jobs = []
    for name, facts in fixture_data.facts().items():
        preset = None if facts["preset"] == "none" else str(fixture_data.FIXTURES / facts["preset"])
        for options in ((), EXTRA.get(name)):
            if options is not None:
                calib = fixture_data.FIXTURES / facts["calib"]
                jobs.append(Job(name, fixture_data.fixture(name), calib, preset, options))
    return jobs


def zoo_jobs(zoo: Path, folder: Path) -> list[Job]:
    jobs = []
    for meta in sorted(zoo.glob("*/meta.json")):
        entry, preset = meta.parent, json.loads(meta.read_text()).get("preset")
        file = folder / f"{entry.name}.yaml"
        if preset is not None:
            file.write_text(yaml.safe_dump(preset))
        jobs.append(Job(entry.name, entry / "model.onnx", entry / "calib", None if preset is None else str(file)))
    return jobs


def line(job: Job, zoo: Path | None, out: Path, repeats: int) -> str:
    report, seconds, peak_mb = quantize(job, out)
    score = fixture_score(job, out) if zoo is None else zoo_score(job, zoo / "score.py", out, report)
    float_ms, speed = speeds(job, out, repeats)
    share = report["int8_macs_share"]
    cells = [
        " ".join(f"`{part}`" for part in (job.name, " ".join(job.options)) if part),
        f"{report['input_bytes'] / 1e6:.2f} → {out.stat().st_size / 1e6:.2f}",
        f"{score.sqnr_db:.1f}",
        score.metric,
        f"{score.before:.1f} %",
        f"{score.after:.1f} %",
        "-" if share is None else f"{100 * share:.0f} %",
        f"{float_ms:.3g}",
        f"{speed:.2f}x",
        f"{seconds:.1f}",
        f"{peak_mb:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def quantize(job: Job, out: Path) -> tuple[dict[str, Any], float, float]:
    """The JSON report, and seconds and peak MB of the whole process."""
    command = [sys.executable, "-m", "onnxshot", "quantize", str(job.model), "--calib", str(job.calib)]
    command += ["-o", str(out), "--threads", str(THREADS), "--no-cache", "--json", *job.options]
    command += [] if job.preset is None else ["--preset", job.preset]
    took = cost(command)
    return json.loads(took.output), took.wall, took.peak


def fixture_score(job: Job, out: Path) -> Score:
    feeds, _ = fixture_data.heldout(job.name)
    found = onnxshot.compare(job.model, out, feeds)
    if found.sqnr_db is None:
        raise SystemExit(f"{job.name}: no output to compare")
    before, after = (100 * fixture_data.accuracy(job.name, model) for model in (job.model, out))
    metric = fixture_data.facts()[job.name]["metric"]
    return Score(found.sqnr_db, METRICS.get(metric, metric), before, after)


def zoo_score(job: Job, script: Path, out: Path, report: dict[str, Any]) -> Score:
    """Without a score.py: SQNR and top-1 agreement on the held-out quarter of the calibration samples."""
    if not script.is_file():
        agreement = report["agreement"]
        return Score(report["sqnr_db"], "agreement", 100.0, float("nan") if agreement is None else 100 * agreement)
    command = [sys.executable, str(script), str(job.model.parent), str(out), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    metric = METRICS.get(found["metric"], found["metric"])
    return Score(found["sqnr_db"], metric, found["float"], found["candidate"])


def speeds(job: Job, out: Path, repeats: int) -> tuple[float, float]:
    """Milliseconds of the float model, and how many times faster the result is: medians of paired runs."""
    rounds = [
        onnxshot.bench([job.model, out], str(job.calib), preset=job.preset, threads=THREADS) for _ in range(repeats)
    ]
    return (
        statistics.median(before.median_ms for before, _ in rounds),
        statistics.median(after.ratio for _, after in rounds),
    )


if __name__ == "__main__":
    main()
