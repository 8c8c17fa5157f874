"""The command line: parses, calls the Python API, prints. Exit codes are those of errors.py."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import onnxshot
from onnxshot.bundles.making import refuse_folder
from onnxshot.cli import emit as cli_emit
from onnxshot.cli import terminal
from onnxshot.cli.batch import batch
from onnxshot.cli.bundle import BundleOpt, verify
from onnxshot.cli.diff import diff
from onnxshot.cli.doctor import doctor
from onnxshot.cli.options import (
    CacheOpt,
    CalibOpt,
    DeviceOpt,
    ExcludeOpt,
    IncludeOpt,
    JsonOpt,
    LogOpt,
    ModelArg,
    PrecisionOpt,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    SetOpt,
    StatsOpt,
    TargetOpt,
    ThreadsOpt,
    is_given,
    recipe_of,
    samples_of,
    sinks_of,
    tell,
)
from onnxshot.cli.prune import compress, prune
from onnxshot.cli.replay import replay
from onnxshot.errors import GoalMissed, OnnxshotError, UsageError
from onnxshot.observing import cache as store
from onnxshot.observing.calibrating import merge_files
from onnxshot.recipes.files import load_recipe
from onnxshot.recipes.recipe import Recipe
from onnxshot.report import Report, save_report

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress exported ONNX models in one shot: no training code, no labels, with proof.",
)

_INTERRUPTED = 130  # what the parser makes of Ctrl-C, and what shells use

@app.command()
def quantize(
    context: typer.Context,
    model: ModelArg,
    calib: CalibOpt = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write. Default: MODEL.PRECISION.onnx beside the input."),
    ] = None,
    target: TargetOpt = "ort",
    mode: Annotated[
        str,
        typer.Option(help="static: calibrated, dynamic per op where better. dynamic: no data. weights: for size."),
    ] = "static",
    precision: PrecisionOpt = "int8",
    preset: PresetOpt = None,
    effort: Annotated[
        str, typer.Option(help="Accuracy: fast (ranges only), balanced (channels, biases), best (weights too).")
    ] = "balanced",
    method: Annotated[
        str, typer.Option(help="Ranges: auto, minmax, moving-average, percentile, entropy, mse.")
    ] = "auto",
    format: Annotated[str, typer.Option("--format", help="qdq or qoperator.")] = "qdq",
    activation_type: Annotated[str | None, typer.Option(help="uint8, int8, uint16, int16, float8e4m3fn.")] = None,
    weight_type: Annotated[
        str | None, typer.Option(help="int8, uint8, int16, uint16, float8e4m3fn; int4 with --mode weights.")
    ] = None,
    block: Annotated[int, typer.Option(help="int4 weights: how many inputs share a scale.", min=2)] = 128,
    per_channel: Annotated[bool, typer.Option("--per-channel/--per-tensor", help="Scales of weights.")] = True,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Keep the scales of a quantized model, and quantize the rest of it.")
    ] = False,
    samples: SamplesOpt = "auto",
    stats: StatsOpt = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="A YAML recipe, or a report that holds one; options overrule it.")
    ] = None,
    arguments: SetOpt = None,
    report: ReportOpt = None,
    log: LogOpt = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Goal: least SQNR of the outputs in dB.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Goal: most that the score of --eval may fall.")] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="file.py:function that scores a model, higher is better.")
    ] = None,
    max_latency: Annotated[float | None, typer.Option(help="Goal: most milliseconds of one run.")] = None,
    max_size: Annotated[float | None, typer.Option(help="Goal: most megabytes of the file.")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes to search for the goal.")] = None,
    bundle: BundleOpt = None,
    batch: cli_emit.BatchOpt = None,
    shape: cli_emit.ShapeOpt = None,
    emit: cli_emit.EmitOpt = None,
    shapes: cli_emit.ShapesOpt = None,
    hardware: cli_emit.HardwareOpt = None,
    half_weights: cli_emit.HalfOpt = False,
    timing_cache: cli_emit.TimingOpt = None,
    build_minutes: cli_emit.MinutesOpt = 30.0,
    require_faster: Annotated[bool, typer.Option(help="Exit 3 if the result is slower than the input.")] = False,
    keep_overridable: Annotated[bool, typer.Option(help="Leave weights that are also inputs as they are.")] = False,
    requantize: Annotated[bool, typer.Option(help="Take a quantized model back to float first.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the result with the input.")] = True,
    cache: CacheOpt = True,
    device: DeviceOpt = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of random calibration data.")] = 0,
    threads: ThreadsOpt = 2,
    as_json: JsonOpt = False,
) -> None:
    """Quantize MODEL to int8 and prove the result against it."""
    options: dict[str, Any] = {
        "mode": mode, "precision": precision, "format": format, "activation_type": activation_type,
        "weight_type": weight_type, "block": block, "per_channel": per_channel, "effort": effort, "method": method,
        "exclude": tuple(exclude or ()), "include": tuple(include or ()),
        "complete": complete, "batch": batch, "shape": shape,
    }  # fmt: skip
    given = {k: v for k, v in options.items() if is_given(context, k)}
    if given.pop("shape", None):
        given["shapes"] = cli_emit.fixed_shapes(shape)
    recipe = replace(recipe_of(recipe_file, arguments, load_recipe) or Recipe(), **given)
    goals = {
        "min_sqnr": min_sqnr, "max_drop": max_drop, "max_latency": max_latency, "max_size": max_size, "budget": budget,
    }  # fmt: skip
    wanted = evaluation is not None or any(value is not None for value in goals.values())
    goal = onnxshot.Goal(evaluate=evaluation, **goals) if wanted else None
    sinks = sinks_of(log)
    targets = cli_emit.listed([target]) if is_given(context, "target") else None
    places = cli_emit.places_of(model, output, emit, targets or (recipe.target,), recipe.precision)
    if goal is not None and set(cli_emit.listed(emit) or ("onnx",)) != {"onnx"}:
        raise UsageError("a goal is searched for in ONNX Runtime", "then run onnxshot emit on the result")
    how: dict[str, Any] = {"emit": cli_emit.listed(emit)} if goal is None else {"goal": goal}
    if goal is None:
        how["emit_options"] = cli_emit.emit_options(
            shapes, hardware, half_weights, timing_cache, build_minutes, threads
        )
    bundles = {name: bundle / name if len(places) > 1 else bundle for name in places} if bundle is not None else {}
    for folder in bundles.values():
        refuse_folder(folder)  # before the work, not after it
    reports: dict[str, Report] = {}
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), verify=verify, use_cache=cache, threads=threads, device=device, seed=seed,
            keep_overridable=keep_overridable, requantize=requantize, progress=show,
        )  # fmt: skip
        make = onnxshot.quantize if goal is None else onnxshot.tune
        for name, out in places.items():
            result = make(
                model, calib, stats=stats, output=out, preset=preset, recipe=replace(recipe, target=name),
                settings=settings, **how,
            )  # fmt: skip
            reports[name] = result.report
            if bundles:
                onnxshot.bundle(result, bundles[name], calib, preset=preset, settings=settings)
    values = cli_emit.joined(reports)
    if report is not None:
        save_report(values, report)
    tell(as_json, values, lambda: terminal.show_reports(reports.values()))
    for sink in sinks:
        sink.send(values)
    for name, found in reports.items():
        if found.goal.get("missed"):
            missed = "; ".join(found.goal["missed"])
            hint = "it is the best found; --report FILE lists the others"
            raise GoalMissed(f"{places[name]} was written, but {missed}", hint)
        if require_faster and (found.speedup is None or found.slower):
            measured = "its speed was not measured" if found.speedup is None else "it is slower than the input"
            raise GoalMissed(f"{places[name]} was written, but {measured}", "leave out --require-faster to accept it")


app.command()(prune)
app.command()(cli_emit.emit)
app.command()(compress)
app.command()(replay)
app.command()(batch)
app.command()(diff)
app.command("verify")(verify)
app.command()(doctor)


@app.command()
def calibrate(
    model: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="The .onnx file; with --merge, the .npz files to join.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the statistics, a .npz file.")],
    merge: Annotated[bool, typer.Option("--merge", help="Join statistics of parts of the data.")] = False,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    target: TargetOpt = "ort",
    include: IncludeOpt = None,
    samples: SamplesOpt = "auto",
    holdout: Annotated[
        float, typer.Option(help="Share of the samples, the last ones, left alone to judge a result on.")
    ] = 0.25,
    cache: CacheOpt = True,
    device: DeviceOpt = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of random calibration data.")] = 0,
    threads: ThreadsOpt = 2,
    as_json: JsonOpt = False,
) -> None:
    """Run MODEL over calibration data and write statistics for `quantize --stats`; or join some of them."""
    started = time.perf_counter()
    if merge:
        if calib is not None:
            raise UsageError("--merge joins statistics that are there; it takes no --calib")
        found = merge_files(model, output)
    else:
        if len(model) != 1:
            raise UsageError(f"{len(model)} models were given", "calibrate one at a time; --merge joins statistics")
        with terminal.progress(not as_json) as show:
            settings = onnxshot.Settings(
                samples=samples_of(samples), use_cache=cache, threads=threads, device=device, seed=seed, progress=show
            )
            recipe = Recipe(target=target, include=tuple(include or ()))
            found = onnxshot.calibrate(
                model[0], calib, output=output, preset=preset, recipe=recipe, settings=settings, holdout=holdout
            )
    values = {
        "output": str(output), "model": found.model, "data": found.data, "preset": found.preset,
        "samples": len(found.samples), "considered": found.considered, "tensors": len(found.tensors),
        "seconds": round(time.perf_counter() - started, 3), "notes": list(found.notes),
    }  # fmt: skip
    lines = [f"{output}: {len(found.tensors)} tensors, {len(found.samples)} samples", *found.notes]
    tell(as_json, values, lambda: terminal.show_text("\n".join(lines)))


cache_app = typer.Typer(no_args_is_help=True, help="Calibration statistics of earlier runs.")
app.add_typer(cache_app, name="cache")


@cache_app.command("show")
def cache_show(as_json: JsonOpt = False) -> None:
    """Show where statistics are kept, how many there are, and how large they are."""
    files = store.entries()
    size = sum(path.stat().st_size for path in files)
    folder = store.folder()
    values = {"folder": str(folder), "entries": len(files), "bytes": size, "max_bytes": store.MAX_BYTES}
    text = f"{folder}: {len(files)} entries, {size / 1e6:.1f} of {store.MAX_BYTES / 1e6:.0f} MB"
    tell(as_json, values, lambda: terminal.show_text(text))


@cache_app.command("clear")
def cache_clear(as_json: JsonOpt = False) -> None:
    """Remove all statistics that are kept."""
    freed = store.clear()
    tell(as_json, {"bytes": freed}, lambda: terminal.show_text(f"{freed / 1e6:.1f} MB removed"))


@app.command()
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
    recipe = Recipe(
        target=target, mode=mode, precision=precision, exclude=tuple(exclude or ()), include=tuple(include or ())
    )
    found = onnxshot.inspect(model, recipe=recipe, calib=calib, preset=preset)
    tell(as_json, found.to_dict(), lambda: terminal.show_text(found.to_text()))


@app.command()
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
    recipe = Recipe(target=target, mode=mode, exclude=tuple(exclude or ()), include=tuple(include or ()))
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(samples=samples_of(samples), use_cache=cache, threads=threads, progress=show)
        found = onnxshot.sensitivity(
            model, calib, stats=stats, preset=preset, gains=gains, recipe=recipe, settings=settings
        )
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: terminal.show_sensitivity(found))


@app.command()
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
    settings = onnxshot.Settings(samples=samples_of(samples), threads=threads)
    found = onnxshot.compare(reference, candidate, calib, preset=preset, settings=settings)
    if report is not None:
        found.save(report)
    tell(as_json, found.to_dict(), lambda: terminal.show_report(found))


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Models; the first is the base.")],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each model.")] = 2.0,
    threads: ThreadsOpt = 2,
    as_json: JsonOpt = False,
) -> None:
    """Measure the latency of models in turns, so that a busy machine is unfair to none of them."""
    rows = onnxshot.bench(models, calib, preset=preset, seconds=seconds, threads=threads)
    values = {"models": [{**asdict(row), "path": str(row.path)} for row in rows]}
    tell(as_json, values, lambda: terminal.show_latencies(rows))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"onnxshot {onnxshot.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


def entry() -> None:
    """Run the command and leave at once: to unload the runtimes takes a quarter of a second that nobody needs."""
    code = 1
    try:
        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Every error is one line on stderr and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except OnnxshotError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; nothing is half written", _INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command-line parser, which names no public class
            text = error.format_message()
            if not text:  # no command was given: the help was printed
                sys.exit(2)
            _fail(f"{text} (onnxshot COMMAND --help lists the options)", 2)
        if os.environ.get("ONNXSHOT_DEBUG"):
            raise
        _fail(f"internal error: {type(error).__name__}: {error}; ONNXSHOT_DEBUG=1 shows where", 1)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(code)
