"""What each step of --effort brings: `python benchmarks/effort.py --zoo FOLDER [--models ...]`, a Markdown table.

Every model is quantized with all steps of an effort, and with each step switched off in turn. SQNR is of the outputs in
dB, on samples that nothing was learned from, and on those that were calibrated on; speed is against the float model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from readme import THREADS, Job, fixture_jobs, head, table, zoo_jobs

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.recovery import plan_candidates
from onnxshot.recovery.further_steps import FurtherSteps
from onnxshot.verification.compare_models import compare

WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {  # name -> (options, steps that are switched off)
    "fast": ({"effort": "fast"}, ()),
    "balanced": ({"effort": "balanced"}, ()),
    "balanced, no equalization": ({"effort": "balanced", "equalize": False}, ()),
    "balanced, no input grid": ({"effort": "balanced", "grid": False}, ()),
    "balanced, no smoothing": ({"effort": "balanced", "smooth": False}, ()),
    "balanced, no look": ({"effort": "balanced", "look": False}, ()),
    "balanced, no bias correction": ({"effort": "balanced"}, ("repair",)),
    "best": ({"effort": "best"}, ()),
    "best, no equalization": ({"effort": "best", "equalize": False}, ()),
    "best, no input grid": ({"effort": "best", "grid": False}, ()),
    "best, no look": ({"effort": "best", "look": False}, ()),
    "best, no ranges by outputs": ({"effort": "best"}, ("refine",)),
    "best, no rounding": ({"effort": "best"}, ("rounding",)),
    "best, no rounding, no bias correction": ({"effort": "best"}, ("repair",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS), help="only these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        os.environ["ONNXSHOT_CACHE"] = str(Path(made) / "cache")
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, Path(made))
        head("model", "way", "SQNR dB, other samples", "SQNR dB, calibrated on", "speed", "CPU s without the proof")
        for job in jobs:
            if not job.options and (args.models is None or job.name in args.models):
                for name in args.ways:
                    table(f"`{job.name}`", name, *measured(job, *WAYS[name], Path(made) / "out.onnx"))


def measured(job: Job, options: dict[str, Any], off: tuple[str, ...], out: Path) -> tuple[str, str, str, str]:
    """The cells of one way. CPU time is that of a run without the proof; the figures are those of one with it."""
    settings = onnxshot.Settings(threads=THREADS)
    shutil.rmtree(os.environ["ONNXSHOT_CACHE"], ignore_errors=True)
    with contextlib.ExitStack() as switched:
        for step in off:
            switched.enter_context(SWITCHES[step]())
        start = time.process_time()
        alone = replace(settings, verify=False)
        onnxshot.quantize(job.model, job.calib, preset=job.preset, output=out, settings=alone, **options)
        seconds = time.process_time() - start
        made = onnxshot.quantize(job.model, job.calib, preset=job.preset, output=out, settings=settings, **options)
    report = made.report
    with open_calib(job.calib, load_model(job.model), job.preset, settings) as data:
        seen = data.subset(split(len(data))[0])
        inside = compare(job.model, out, seen, threads=THREADS).sqnr_db
    return f"{report.sqnr_db:.1f}", f"{inside:.1f}", f"{report.speedup:.2f}x", f"{seconds:.1f}"


SWITCHES: dict[str, Callable[[], Any]] = {
    "repair": lambda: mock.patch.object(plan_candidates, "reconstruct", lambda *_, **__: {}),
    "refine": lambda: mock.patch.object(FurtherSteps, "ranged", lambda self, first, *_: first),
    "rounding": lambda: mock.patch.object(FurtherSteps, "rounded", lambda self, teacher, model, plan, so_far: so_far),
}

if __name__ == "__main__":
    main()
