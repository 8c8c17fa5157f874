"""Compare and time any two models, whatever tool made them: the proof of a run, as a service of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxshot.arguments import checked
from onnxshot.calibration.preprocess import Preset
from onnxshot.difference.rescaled import between
from onnxshot.errors import UsageError
from onnxshot.files.given import of_model_file, of_run
from onnxshot.graph.load import load_model
from onnxshot.half.emulation import runnable_here
from onnxshot.observing.calibrating import open_calib
from onnxshot.proving import proof
from onnxshot.proving.verify import compare
from onnxshot.report import Report, TensorReport
from onnxshot.settings import Settings
from onnxshot.targets.ort_bench import Latency, bench
from onnxshot.targets.ort_elsewhere import bench_in
from onnxshot.targets.ort_executed import executed
from onnxshot.targets.ort_runtime import runtime
from onnxshot.targets.unsound import blames_model

_BENCH_FEEDS = 8


@checked
@blames_model
def compare_models(
    reference: str | Path,
    candidate: str | Path,
    calib: Any,
    *,
    preset: str | Preset | None = None,
    settings: Settings | None = None,
) -> Report:
    """Hold a candidate against its float original on all samples: outputs, tensors by name, what runs in int8, latency.

    Raises ModelError where a model does not load, CalibrationError where the data does not fit.
    """
    settings = settings or Settings()
    reference, candidate = Path(reference), Path(candidate)
    loaded = load_model(reference)
    other = of_model_file(candidate, "the candidate")
    settings.files.reading(*of_run(loaded, calib, preset), *other).check()
    report = Report(str(candidate), {"reference": str(reference)}, input_bytes=reference.stat().st_size)
    with open_calib(calib, loaded, preset, settings) as data, runnable_here([reference, candidate]) as (runs, notes):
        reference, candidate = runs
        report.notes += notes
        # Which of them a candidate was made from is not known here: nothing is called held out.
        report.samples = {"source": data.source, "random": data.random}
        factors = between(reference, candidate)
        report.notes += factors.notes
        found = compare(
            reference, candidate, data, tensors=None, threads=settings.threads, scaled=factors.tensors,
            form=factors.form,
        )  # fmt: skip
        proof.tell(report, found, random=data.random)
        report.worst = [TensorReport(r.tensor, r.op, r.sqnr_db, clipped=r.clipped) for r in found.tensors]
        proof.tell_execution(report, executed(candidate, sample=data[0].feed, threads=settings.threads))
        proof.time_both(report, reference, candidate, data, settings)
    return report


@checked
@blames_model
def bench_models(
    models: Sequence[str | Path],
    calib: Any = None,
    *,
    preset: str | Preset | None = None,
    seconds: float = 2.0,
    threads: int = 2,
    python: str | Path | None = None,
) -> list[Latency]:
    """Time models in turns on the same samples; on random ones where none are given. The first model is the base.

    python: the interpreter of another environment, or its folder, in whose ONNX Runtime they are timed; it needs
    onnxruntime and numpy, and no onnxshot. What can go wrong there: see `ort_elsewhere.bench_in`.
    """
    if isinstance(models, str | Path) or not models or not all(isinstance(m, str | Path) for m in models):
        raise UsageError("models is no list of paths of models", "give one or more, such as ['a.onnx', 'b.onnx']")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"seconds is {seconds:g}", "give a finite number, 0 or above")
    paths = [Path(m) for m in models]
    loaded = [load_model(p) for p in paths]
    with open_calib("random" if calib is None else calib, loaded[0], preset, Settings()) as data:
        feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
        if python is not None:
            return bench_in(python, paths, feeds, threads=threads, seconds=seconds)
        here = f"onnxruntime {runtime().__version__}"
        with runnable_here(paths) as (runs, _):
            timed = bench(runs, feeds, threads=threads, rounds=10_000, seconds=seconds)
        return [replace(row, path=path, runtime=here) for row, path in zip(timed, paths, strict=True)]
