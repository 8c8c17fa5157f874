"""The commands that look at models and change none: `inspect`, `sensitivity`, `compare`, `bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import (
    CacheOpt,
    CalibOpt,
    ExcludeOpt,
    IncludeOpt,
    JsonOpt,
    ModelArg,
    PrecisionOpt,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    StatsOpt,
    TargetOpt,
    ThreadsOpt,
    files_of,
    samples_of,
    tell,
)


def inspect(
    model: ModelArg,
    target: TargetOpt = "ort",
    mode: Annotated[str, typer.Option(help="static, dynamic or weights.")] = "static",
    precision: PrecisionOpt = "int8",
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what would be quantized, what would not, and why; with --calib also what the inputs look like."""
    recipe = onnxshot.Recipe(
        target=target, mode=mode, precision=precision, exclude=tuple(exclude or ()), include=tuple(include or ())
    )
    found = onnxshot.inspect(model, recipe=recipe, calib=calib, preset=preset)
    tell(as_json, found.to_dict(), lambda: terminal.show_text(found.to_text()))


def sensitivity(
    model: ModelArg,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    target: TargetOpt = "ort",
    mode: Annotated[str, typer.Option(help="static, dynamic or weights.")] = "static",
    gains: Annotated[bool, typer.Option("--gains", help="Also what is won when each node alone stays float.")] = False,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    samples: SamplesOpt = "auto",
    stats: StatsOpt = None,
    report: ReportOpt = None,
    cache: CacheOpt = True,
    threads: ThreadsOpt = 2,
    as_json: JsonOpt = False,
) -> None:
    """Measure what each node costs when it alone is int8, worst first."""
    from onnxshot.cli import tables

    recipe = onnxshot.Recipe(target=target, mode=mode, exclude=tuple(exclude or ()), include=tuple(include or ()))
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), use_cache=cache, threads=threads, files=files_of(report), progress=show
        )
        found = onnxshot.sensitivity(
            model, calib, stats=stats, preset=preset, gains=gains, recipe=recipe, settings=settings
        )
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: tables.show_sensitivity(found))


def compare(
    reference: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The other model.", show_default=False)],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    samples: SamplesOpt = "all",
    report: ReportOpt = None,
    threads: ThreadsOpt = 2,
    as_json: JsonOpt = False,
) -> None:
    """Compare any two models of the same inputs and outputs, tensor by tensor, worst first."""
    from onnxshot.cli import tables

    settings = onnxshot.Settings(samples=samples_of(samples), threads=threads, files=files_of(report))
    found = onnxshot.compare(reference, candidate, calib, preset=preset, settings=settings)
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: tables.show_report(found))


def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Models; the first is the base.")],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each model.")] = 2.0,
    threads: ThreadsOpt = 2,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Time in the onnxruntime of this interpreter or environment.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Measure the latency of models in turns, so that a busy machine is unfair to none of them."""
    from onnxshot.cli import tables

    rows = onnxshot.bench(models, calib, preset=preset, seconds=seconds, threads=threads, python=python)
    values = {"models": [{**asdict(row), "path": str(row.path)} for row in rows]}
    tell(as_json, values, lambda: tables.show_latencies(rows))
