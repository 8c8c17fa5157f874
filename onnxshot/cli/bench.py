"""`bench`: measure the latency of several models side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.help import MACHINE
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    PresetOpt,
    ThreadsOpt,
    TokenizerOpt,
    preset_of,
    tell,
)

if TYPE_CHECKING:
    from onnxshot.runtimes.ort_bench import Latency


def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Models; speedups are relative to the first.")
    ],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", rich_help_panel=MACHINE, help="Seconds to measure each model.")
    ] = 2.0,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", rich_help_panel=MACHINE, help="Time in the onnxruntime of this interpreter or environment."
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Time models side by side.

    Their runs are interleaved, so that other load affects all of them alike. The first model is the baseline.
    """
    from onnxshot.cli.latency_table import show_latencies

    reading = preset_of(preset, tokenizer, length)
    with terminal.progress(not as_json, "timing"):
        rows = onnxshot.bench(
            models, calib, preset=reading, seconds=seconds, threads=threads, python=python, memory=memory
        )
    values = {"models": [_plain(row) for row in rows]}
    tell(as_json, values, lambda: show_latencies(rows))


def _plain(row: Latency) -> dict[str, Any]:
    """A row as plain values; parts that were not timed are left out."""
    inner = {name: _plain(part) for name in ("prompt", "token") if (part := getattr(row, name)) is not None}
    own = {name: value for name, value in asdict(row).items() if name not in ("prompt", "token") and value is not None}
    return {**own, "path": str(row.path), **inner}
