"""`emit`: convert a model to the format of a runtime, without compressing it."""

from __future__ import annotations

from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.completion import FORMATS, one_of
from onnxshot.cli.emit_options import (
    BatchOpt,
    HalfOpt,
    HardwareOpt,
    MinutesOpt,
    ShapeOpt,
    ShapesOpt,
    TimingOpt,
    options_from,
    parse_shapes,
    split_commas,
)
from onnxshot.cli.help import RESULT, RUNTIMES
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    PresetOpt,
    ReportOpt,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    VerifyOpt,
    files_of,
    place_of,
    preset_of,
    tell,
)


def emit(
    model: ModelArg,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT", rich_help_panel=RUNTIMES, autocompletion=one_of(FORMATS),
            help="onnx, openvino, tensorrt; several with commas. Default: by -o, else onnx.",
        ),
    ] = None,
    target: TargetOpt = "ort",
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=RESULT, help="Where to write. Default: beside MODEL."
        ),
    ] = None,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    batch: BatchOpt = None,
    shape: ShapeOpt = None,
    shapes: ShapesOpt = None,
    hardware: HardwareOpt = None,
    half_weights: HalfOpt = False,
    timing_cache: TimingOpt = None,
    build_minutes: MinutesOpt = 30.0,
    verify: VerifyOpt = True,
    report: ReportOpt = None,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Convert a model to the format of a runtime.

    It is not compressed. 'onnx' normalizes it, or moves a quantized model to --target.
    """
    from onnxshot.cli import tables

    reading = preset_of(preset, tokenizer, length)
    formats = split_commas(to)
    beside = f"{model.stem}.normalized.onnx" if formats is None or "onnx" in formats else model.name
    place, named = place_of(output, model.parent / beside)
    options = options_from(shapes, hardware, half_weights, timing_cache, build_minutes, threads)
    with terminal.progress(not as_json) as show:
        unnamed = () if named or place == model else (place,)
        files = files_of(report, unnamed=unnamed)
        settings = onnxshot.Settings(verify=verify, threads=threads, memory=memory, files=files, progress=show)
        found = onnxshot.emit(
            model, to=formats, target=target, output=place, calib=calib, preset=reading, batch=batch,  # type: ignore[arg-type]
            shapes=parse_shapes(shape), options=options, settings=settings,
        )  # fmt: skip
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: tables.show_emitted(found, report))
