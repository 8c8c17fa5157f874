"""`calibrate`: gather calibration statistics once, for later runs of `quantize --stats`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.help import DATA, RESULT
from onnxshot.cli.options import (
    CacheOpt,
    CalibOpt,
    DeviceOpt,
    IncludeOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    PresetOpt,
    SamplesOpt,
    SeedOpt,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    preset_of,
    samples_of,
    tell,
)
from onnxshot.errors import UsageError
from onnxshot.files.links import named_file
from onnxshot.wording import counted

if TYPE_CHECKING:
    from onnxshot.calibration.statistics_file import Statistics


def calibrate(
    model: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="The .onnx file; with --merge, the .npz files to merge.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=RESULT, parser=named_file,
            help="Where to write, a .npz file.",
        ),
    ],
    merge: Annotated[
        bool, typer.Option("--merge", rich_help_panel=DATA, help="Merge the statistics of parts of the data.")
    ] = False,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    target: TargetOpt = "ort",
    include: IncludeOpt = None,
    samples: SamplesOpt = "auto",
    holdout: Annotated[
        float,
        typer.Option(
            metavar="SHARE", rich_help_panel=DATA, help="Share of the samples, spread over all, to judge a result on."
        ),
    ] = 0.25,
    cache: CacheOpt = True,
    device: DeviceOpt = "cpu",
    seed: SeedOpt = 0,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Write calibration statistics for later runs.

    They serve `quantize --stats`. With --merge, the statistics of several machines become one file.
    """
    reading = preset_of(preset, tokenizer, length)
    started = time.perf_counter()
    if merge:
        if calib is not None:
            raise UsageError("--merge joins existing statistics; it takes no --calib")
        from onnxshot.api.calibrate import merge_files

        found = merge_files(model, output)
    else:
        if len(model) != 1:
            raise UsageError(f"{len(model)} models were given", "calibrate one at a time; --merge joins statistics")
        with terminal.progress(not as_json) as show:
            settings = onnxshot.Settings(
                samples=samples_of(samples), use_cache=cache, threads=threads, device=device, memory=memory,  # type: ignore[arg-type]
                seed=seed, progress=show,
            )  # fmt: skip
            recipe = onnxshot.Recipe.from_dict({"target": target, "include": include})
            found = onnxshot.calibrate(
                model[0], calib, output=output, preset=reading, recipe=recipe, settings=settings, holdout=holdout
            )
    values = {
        "output": str(output), "model": found.model, "data": found.data, "preset": found.preset,
        "samples": len(found.samples), "considered": found.considered, "tensors": len(found.tensors),
        "seconds": round(time.perf_counter() - started, 3), "notes": list(found.notes),
    }  # fmt: skip
    tell(as_json, values, lambda: _show(found, output))


def _show(found: Statistics, output: Path) -> None:
    """Print what was gathered: in a frame on a terminal, else in one line."""
    console = terminal.stderr_console()
    if console.is_terminal:
        from onnxshot.cli.result_frame import Line, print_frame, print_written
        from onnxshot.report.advice import megabytes

        size = Line("size", "", megabytes(output.stat().st_size))
        counts = [
            Line(name, "", f"{len(of):,}") for name, of in (("tensors", found.tensors), ("samples", found.samples))
        ]
        print_frame(console, [*counts, size], after="statistics")
        print_written(console, [str(output)])
    else:
        tensors, samples = counted(len(found.tensors), "tensor"), counted(len(found.samples), "sample")
        terminal.show_text(f"{output}: {tensors}, {samples}")
    for note in found.notes:
        terminal.show_text(note)
