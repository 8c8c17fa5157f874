"""`compare`: measure the error of one model against another, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    ThreadsOpt,
    TokenizerOpt,
    files_of,
    preset_of,
    samples_of,
    tell,
)


def compare(
    reference: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The other model.", show_default=False)],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    samples: SamplesOpt = "all",
    report: ReportOpt = None,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Compare two models by their outputs and tensors.

    They may come from any tool, and need the same inputs and outputs. The worst tensor is listed first.
    """
    from onnxshot.cli import tables

    reading = preset_of(preset, tokenizer, length)
    with terminal.progress(not as_json, "comparing") as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), threads=threads, memory=memory, files=files_of(report), progress=show
        )
        found = onnxshot.compare(reference, candidate, calib, preset=reading, settings=settings)
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: tables.show_report(found, report))
