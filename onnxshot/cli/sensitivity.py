"""`sensitivity`: measure the accuracy that each node costs in int8, and the time that it gains."""

from __future__ import annotations

from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.help import RESULT
from onnxshot.cli.options import (
    CacheOpt,
    CalibOpt,
    ExcludeOpt,
    IncludeOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    ModeOpt,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    StatsOpt,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    files_of,
    preset_of,
    samples_of,
    tell,
)


def sensitivity(
    model: ModelArg,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    target: TargetOpt = "ort",
    mode: ModeOpt = "static",
    gains: Annotated[
        bool,
        typer.Option("--gains", rich_help_panel=RESULT, help="Also measure the gain if each node alone stays float."),
    ] = False,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    samples: SamplesOpt = "auto",
    stats: StatsOpt = None,
    report: ReportOpt = None,
    cache: CacheOpt = True,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Measure what each node alone costs in int8, worst first."""
    from onnxshot.cli import tables

    reading = preset_of(preset, tokenizer, length)
    recipe = onnxshot.Recipe.from_dict({"target": target, "mode": mode, "exclude": exclude, "include": include})
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), use_cache=cache, threads=threads, memory=memory, files=files_of(report),
            progress=show,
        )  # fmt: skip
        found = onnxshot.sensitivity(
            model, calib, stats=stats, preset=reading, gains=gains, recipe=recipe, settings=settings
        )
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: tables.show_sensitivity(found, report))
