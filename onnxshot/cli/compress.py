"""`compress`: prune and quantize, or run the stages of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.completion import PATTERNS, one_of
from onnxshot.cli.emit_options import BatchOpt, ShapeOpt, parse_shapes
from onnxshot.cli.help import RESULT, ZEROS
from onnxshot.cli.options import (
    AcceptOpt,
    BundleOpt,
    CacheOpt,
    CalibOpt,
    EffortOpt,
    JsonOpt,
    LayerOpt,
    LengthOpt,
    LogOpt,
    MemoryOpt,
    ModelArg,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    ScopeOpt,
    SearchTimeOpt,
    SetOpt,
    SparsityOpt,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    files_of,
    is_given,
    layer_sparsity,
    place_of,
    preset_of,
    recipe_of,
    samples_of,
    share_of,
    sinks_of,
    tell,
)
from onnxshot.errors import GoalMissed

if TYPE_CHECKING:
    pass


def compress(
    context: typer.Context,
    model: ModelArg,
    optim_level: Annotated[
        float | None,
        typer.Option(
            metavar="LEVEL", rich_help_panel=ZEROS,
            help="One slider for all: from 0 (int8 only) to 1 (int8 with 70 % zeros).",
        ),
    ] = None,
    sparsity: SparsityOpt = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=ZEROS, autocompletion=one_of(PATTERNS),
            help="unstructured; N:M such as 2:4; or block:4x1. Default: unstructured.",
        ),
    ] = None,
    scope: ScopeOpt = None,
    layer: LayerOpt = None,
    spare: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", rich_help_panel=ZEROS, help="Do not prune the nodes that it matches. Repeatable."),
    ] = None,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=RESULT,
            help="Default: MODEL.small.onnx, beside MODEL.",
        ),
    ] = None,
    bundle: BundleOpt = None,
    keep_stages: Annotated[
        Path | None, typer.Option(metavar="DIR", rich_help_panel=RESULT, help="Keep the file of every stage here.")
    ] = None,
    target: TargetOpt = "ort",
    effort: EffortOpt = "balanced",
    recipe_file: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", rich_help_panel=RESULT,
            help="What to do, in stages: YAML, JSON, or a report that holds it.",
        ),
    ] = None,
    arguments: SetOpt = None,
    batch: BatchOpt = None,
    shape: ShapeOpt = None,
    samples: SamplesOpt = "auto",
    search_time: SearchTimeOpt = None,
    accept: AcceptOpt = False,
    report: ReportOpt = None,
    log: LogOpt = None,
    cache: CacheOpt = True,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Prune a model, and then quantize it.

    Or run the stages of a recipe. Each stage is compared with MODEL.
    """
    from onnxshot.api.bundle import of_beside, refuse_folder
    from onnxshot.cli import tables
    from onnxshot.recipes.files import load_stages
    from onnxshot.results.shrunk import ShrinkReport

    reading = preset_of(preset, tokenizer, length)
    sinks = sinks_of(log)
    recipe = recipe_of(recipe_file, arguments, load_stages)
    zeros = share_of("--sparsity", sparsity, "50% or 0.5")
    options = {"target": target, "effort": effort, "batch": batch, "shape": shape}
    given: dict[str, Any] = {name: value for name, value in options.items() if is_given(context, name)}
    if given.pop("shape", None):
        given["shapes"] = parse_shapes(shape)
    if bundle is not None:
        refuse_folder(bundle)  # before the work starts
    out, named = place_of(output, model.parent / f"{model.stem}.small.onnx")
    files = files_of(
        report, recipe=recipe_file, arguments=arguments, bundle=() if bundle is None else (bundle,),
        unnamed=() if named else (out,),
    )  # fmt: skip
    if bundle is not None:
        files = files.reading(*of_beside(model))
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), use_cache=cache, threads=threads, memory=memory, search_seconds=search_time,
            accept=accept, files=files, progress=show,
        )  # fmt: skip
        result = onnxshot.compress(
            model, calib, optim_level=optim_level, sparsity=zeros, pattern=pattern, scope=scope,  # type: ignore[arg-type]
            layers=dict(map(layer_sparsity, layer or ())), spare=spare or (),
            output=out, keep_stages=keep_stages, preset=reading, recipe=recipe, settings=settings, **given,
        )  # fmt: skip
        if bundle is not None:
            onnxshot.bundle(result, bundle, calib, preset=reading, settings=settings)
    if report is not None:
        result.report.save(report)
    tell(as_json, result.report.to_dict(), lambda: tables.show_stages(result.report, report, bundle))
    for sink in sinks:
        sink.send(result.report.to_dict())
    for stage in result.report.stages:
        if isinstance(stage.report, ShrinkReport) and not stage.report.reached:
            raise GoalMissed(
                f"the result was written, but {stage.name} does not reach its target", "no more can be cut"
            )
