"""`quantize`: to 8 or 16 bits, for one target or several, optionally under a goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import onnxshot
from onnxshot.cli import emit_options, terminal
from onnxshot.cli.completion import ACTIVATION_TYPES, METHODS, QDQ_FORMATS, WEIGHT_TYPES, one_of
from onnxshot.cli.help import ACCURACY, EXPERT, GOALS, RESULT, RUNTIMES
from onnxshot.cli.options import (
    AcceptOpt,
    BundleOpt,
    CacheOpt,
    CalibOpt,
    DeviceOpt,
    EffortOpt,
    EvalOpt,
    ExcludeOpt,
    IncludeOpt,
    JsonOpt,
    LengthOpt,
    LogOpt,
    MemoryOpt,
    ModelArg,
    ModeOpt,
    PrecisionOpt,
    PresetOpt,
    RecipeOpt,
    ReportOpt,
    SamplesOpt,
    SearchTimeOpt,
    SeedOpt,
    SetOpt,
    StatsOpt,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    VerifyOpt,
    files_of,
    is_given,
    preset_of,
    recipe_of,
    samples_of,
    share_of,
    sinks_of,
    tell,
)
from onnxshot.cli.quantize_folder import quantize_folder, show_folder
from onnxshot.errors import GoalMissed, UsageError
from onnxshot.progress import QUANTIZING

if TYPE_CHECKING:
    from onnxshot.report.report import Report


def quantize(
    context: typer.Context,
    model: ModelArg,
    calib: CalibOpt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=RESULT,
            help="Default: MODEL.PRECISION.onnx, beside MODEL.",
        ),
    ] = None,
    target: TargetOpt = "ort",
    mode: ModeOpt = "static",
    precision: PrecisionOpt = "int8",
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    effort: EffortOpt = "balanced",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=ACCURACY, autocompletion=one_of(METHODS),
            help="Ranges: auto, minmax, moving-average, percentile, entropy, mse.",
        ),
    ] = "auto",
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", rich_help_panel=EXPERT, autocompletion=one_of(QDQ_FORMATS),
            help="qdq (pairs of Q and DQ) or qoperator. Default: by TARGET.",
        ),
    ] = None,
    activation_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", rich_help_panel=EXPERT, autocompletion=one_of(ACTIVATION_TYPES),
            help="uint8, int8, uint16, int16, float8e4m3fn. Default: by TARGET.",
        ),
    ] = None,
    weight_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", rich_help_panel=EXPERT, autocompletion=one_of(WEIGHT_TYPES),
            help="The same, and int4 with --mode weights.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=ACCURACY, help="Weights in blocks of 4 or 8 bits, as for language models."
        ),
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="N", rich_help_panel=ACCURACY,
            help="Inputs of a block: 16 to 256, or channel. Default: by TARGET and bits.",
        ),
    ] = None,
    asymmetric: Annotated[
        bool | None,
        typer.Option(
            "--asymmetric/--symmetric", rich_help_panel=ACCURACY,
            help="Whether each block has a zero point of its own.",
        ),
    ] = None,
    per_channel: Annotated[
        bool,
        typer.Option(
            "--per-channel/--per-tensor", rich_help_panel=EXPERT,
            help="One scale for a weight, not one for each of its channels.",
        ),
    ] = True,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", rich_help_panel=EXPERT, help="Keep the scales of a quantized model, and quantize the rest."
        ),
    ] = False,
    portable_ops: Annotated[
        bool,
        typer.Option(
            "--portable-ops", rich_help_panel=RUNTIMES,
            help="Standard operators only: no int8 LSTMs of ONNX Runtime.",
        ),
    ] = False,
    samples: SamplesOpt = "auto",
    stats: StatsOpt = None,
    recipe_file: RecipeOpt = None,
    arguments: SetOpt = None,
    report: ReportOpt = None,
    log: LogOpt = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(metavar="DB", rich_help_panel=GOALS, help="Goal: least SQNR of the outputs."),
    ] = None,
    max_perplexity_rise: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", rich_help_panel=GOALS, help="Goal: most that perplexity may rise, such as 2%."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", rich_help_panel=GOALS, help="Goal: most that the score of --eval may fall."),
    ] = None,
    evaluation: EvalOpt = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="MS", rich_help_panel=GOALS, help="Goal: most milliseconds of one run.")
    ] = None,
    max_size: Annotated[
        float | None, typer.Option(metavar="MB", rich_help_panel=GOALS, help="Goal: most megabytes of the file.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", rich_help_panel=GOALS, help="Time limit of the search for the goal."),
    ] = None,
    search_time: SearchTimeOpt = None,
    accept: AcceptOpt = False,
    bundle: BundleOpt = None,
    batch: emit_options.BatchOpt = None,
    shape: emit_options.ShapeOpt = None,
    emit: emit_options.EmitOpt = None,
    shapes: emit_options.ShapesOpt = None,
    hardware: emit_options.HardwareOpt = None,
    half_weights: emit_options.HalfOpt = False,
    timing_cache: emit_options.TimingOpt = None,
    build_minutes: emit_options.MinutesOpt = 30.0,
    require_faster: Annotated[
        bool, typer.Option(rich_help_panel=GOALS, help="Exit with 3 if the result is slower than the input.")
    ] = False,
    keep_overridable: Annotated[
        bool, typer.Option(rich_help_panel=EXPERT, help="Leave weights that are also inputs of the model as they are.")
    ] = False,
    requantize: Annotated[
        bool, typer.Option(rich_help_panel=EXPERT, help="First convert a quantized model back to float.")
    ] = False,
    verify: VerifyOpt = True,
    cache: CacheOpt = True,
    device: DeviceOpt = "cpu",
    seed: SeedOpt = 0,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Quantize a model, and prove the result against it.

    MODEL may also be a folder that a library loads: every .onnx file in it is quantized.
    """
    from onnxshot.api.bundle import of_beside, refuse_folder
    from onnxshot.cli import tables
    from onnxshot.delivery.artifacts import target_of_artifact
    from onnxshot.recipes.files import load_recipe
    from onnxshot.report.saving import save_report

    reading = preset_of(preset, tokenizer, length)
    options: dict[str, Any] = {
        "mode": mode, "precision": precision, "format": format, "activation_type": activation_type,
        "weight_type": weight_type, "bits": bits, "block": _block_of(block), "asymmetric": asymmetric,
        "per_channel": per_channel, "effort": effort, "method": method,
        "exclude": tuple(exclude or ()), "include": tuple(include or ()),
        "complete": complete, "portable_ops": portable_ops, "batch": batch, "shape": shape,
    }  # fmt: skip
    given = {k: v for k, v in options.items() if is_given(context, k)}
    if bits is None and recipe_file is None and weight_type is None and (block or asymmetric is not None):
        raise UsageError("--block and --asymmetric are of weights in blocks", "give --bits 4 or --bits 8 too")
    if bits is not None and recipe_file is None and precision.startswith("int8"):
        given.setdefault("mode", "weights")  # blocks exist in no other mode
    if given.pop("shape", None):
        given["shapes"] = emit_options.parse_shapes(shape)
    recipe = replace(recipe_of(recipe_file, arguments, load_recipe) or onnxshot.Recipe(), **given)
    goals = {
        "min_sqnr": min_sqnr, "max_drop": max_drop, "max_latency": max_latency, "max_size": max_size, "budget": budget,
        "max_perplexity_rise": share_of("--max-perplexity-rise", max_perplexity_rise),
    }  # fmt: skip
    wanted = evaluation is not None or any(value is not None for value in goals.values())
    goal = onnxshot.Goal(evaluate=evaluation, **goals) if wanted else None
    sinks = sinks_of(log)
    place = None if output is None else Path(output)
    targets = emit_options.split_commas([target]) if is_given(context, "target") else None
    if targets is None and recipe_file is None and arguments is None:
        alone = target_of_artifact(emit_options.split_commas(emit), place)
        targets = None if alone is None else (alone,)
    how_run: dict[str, Any] = {
        "samples": samples_of(samples), "verify": verify, "use_cache": cache, "threads": threads, "device": device,
        "memory": memory, "search_seconds": search_time, "accept": accept, "seed": seed,
        "keep_overridable": keep_overridable, "requantize": requantize,
    }  # fmt: skip
    if model.is_dir():
        files = files_of(report, recipe=recipe_file, arguments=arguments)
        values, made = quantize_folder(
            model, calib, place, preset, recipe.for_target((targets or (recipe.target,))[0]),
            {**how_run, "files": files}, as_json=as_json,
            refused={
                "--emit": emit, "--bundle": bundle, "--stats": stats, "a goal": goal,
                "a second target": (targets or ())[1:],
            },
        )  # fmt: skip
        if report is not None:
            save_report(values, report)
        tell(as_json, values, lambda: show_folder(made, report))
        for sink in sinks:
            sink.send(values)
        _refuse_slow(made.reports, require_faster)
        return
    kind = recipe.precision if recipe.bits is None else f"int{recipe.bits}"
    places, named = emit_options.output_paths(model, output, emit, targets or (recipe.target,), kind)
    if goal is not None and set(emit_options.split_commas(emit) or ("onnx",)) != {"onnx"}:
        raise UsageError("a goal is searched for in ONNX Runtime only", "run onnxshot emit on the result")
    how: dict[str, Any] = {"emit": emit_options.split_commas(emit)} if goal is None else {"goal": goal}
    if goal is None:
        how["emit_options"] = emit_options.options_from(
            shapes, hardware, half_weights, timing_cache, build_minutes, threads
        )
    bundles = {name: bundle / name if len(places) > 1 else bundle for name in places} if bundle is not None else {}
    for folder in bundles.values():
        refuse_folder(folder)  # before the work starts
    files = files_of(
        report, recipe=recipe_file, arguments=arguments, bundle=bundles.values(),
        unnamed=() if named else places.values(),
    )  # fmt: skip
    if bundle is not None:
        files = files.reading(*of_beside(model))
    reports: dict[str, Report] = {}
    with terminal.progress(not as_json, stages=QUANTIZING if len(places) == 1 else ()) as show:
        settings = onnxshot.Settings(**how_run, files=files, progress=show)
        make = onnxshot.quantize if goal is None else onnxshot.tune
        for name, out in places.items():
            result = make(
                model, calib, stats=stats, output=out, preset=reading, recipe=recipe.for_target(name),
                settings=settings, **how,
            )  # fmt: skip
            reports[name] = result.report
            if bundles:
                onnxshot.bundle(result, bundles[name], calib, preset=reading, settings=settings)
    values = emit_options.joint_report(reports)
    if report is not None:
        save_report(values, report)
    tell(as_json, values, lambda: tables.show_reports(reports.values(), report, *bundles.values()))
    for sink in sinks:
        sink.send(values)
    for name, found in reports.items():
        if found.goal.get("missed") and not accept:
            missed = "; ".join(found.goal["missed"])
            hint = "it is the best candidate found; --report FILE lists the others; --accept accepts it"
            raise GoalMissed(f"{places[name]} was written, but {missed}", hint)
    _refuse_slow({str(places[name]): found for name, found in reports.items()}, require_faster)


def _refuse_slow(reports: Mapping[str, Report], require_faster: bool) -> None:
    """Raise GoalMissed for a result that is not faster than the input, with --require-faster."""
    for place, found in reports.items():
        if require_faster and (found.speedup is None or found.slower):
            measured = "its speed was not measured" if found.speedup is None else "it is slower than the input"
            raise GoalMissed(f"{place} was written, but {measured}", "omit --require-faster to accept it")


def _block_of(given: str | None) -> int | str | None:
    """The value of --block: a number, or "channel"."""
    return int(given) if given is not None and given.isdecimal() else given
