"""`compress`: run several stages, such as prune and quantize, and compare and time the model after each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from onnx import ModelProto

from onnxshot.api.emit import emit
from onnxshot.api.recipe_stages import RanStages, StageInputs, StageModel, run_recipe_stages
from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.batches import batched, refuse_copies
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, repeatable, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.tokenizer import with_tokenizer
from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_recipe, of_run
from onnxshot.delivery.record import leave_beside, source_of
from onnxshot.delivery.stage_files import artifact_files, evaluation_files, stage_output, stage_writes
from onnxshot.delivery.write_results import input_bytes, peak_rss_mb, source_name
from onnxshot.errors import UsageError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Files
from onnxshot.files.links import follow_link
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import NO_FIXED_SHAPES, FixedShapes
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.precision16.bfloat16_emulation import runnable_on_cpu
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.recipe_options import StageOptions, listed
from onnxshot.recipes.requested_stages import requested_stages, with_portable_ops
from onnxshot.recipes.stages import EmitStage, PruneScope, Stages
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.results.compressed import CompressReport, CompressResult, StageRow
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.rewriting.model_inputs import fixed_shapes_for, plain_preset
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_bench import bench
from onnxshot.settings import Settings, budgeted
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare

_BENCH_FEEDS = 8


@listed
@checked
@budgeted
@one_blas_thread()
@blames_model
def compress(
    model: ModelSource,
    calib: Calib | None,
    *,
    recipe: Stages | Recipe | str | Path | None = None,
    optim_level: float | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    scope: PruneScope | None = None,
    layers: Mapping[str, float] | None = None,
    spare: Sequence[str] = (),
    output: str | Path | None = None,
    keep_stages: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
    **options: Unpack[StageOptions],
) -> CompressResult:
    """Run stages on a model in order, by default prune and quantize.

    Zeros that a prune stage makes stay zeros in the result. Every stage is compared with the given model and timed. The
    stages come from `recipe`, from `optim_level`, or from the arguments `sparsity` to `spare`, which stand for a prune
    stage and a quantize stage.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: Calibration data, as `quantize` takes it. A quarter is held out: it judges all stages, and no
            stage learns from it.
        recipe: The stages, or the path of a recipe file. A recipe of quantization alone may be combined with the
            arguments below.
        optim_level: Number from 0 (int8 only) to 1 (int8 and 70 % zeros), instead of all other ways to name stages.
        sparsity: Share of the weights that becomes zero, as in `prune`.
        pattern: Pattern of the zeros, as in `prune`.
        scope: How zeros are distributed over layers, as in `prune`.
        layers: Glob -> sparsity, as in `prune`.
        spare: Globs of layers that are not pruned.
        output: Path to write to. With None the result stays in memory.
        keep_stages: Folder for the model of every stage.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Threads, verification, benchmark time.
        **options: Fields of the recipe of quantization, by name.

    Returns:
        The model of the last stage, and a report with one row per stage.

    Raises:
        UsageError: The arguments contradict each other.
        ModelError, CalibrationError, TargetError: A stage failed; the message names the stage.

    Example:
        >>> result = onnxshot.compress("model.onnx", "calib/", sparsity=0.5, output="model.small.onnx")
        >>> [row.name for row in result.report.stages]
        ['input', 'pruned', 'quantized']
    """
    calib = with_transform(calib, transform)
    started = time.perf_counter()
    made_from, model = origin_of(model), plain_source(model)
    settings = settings or Settings()
    if calib is None:
        raise UsageError("there are no samples", "give [[calib=DATA]]: every stage learns from it")
    asked = {"sparsity": sparsity, "pattern": pattern, "scope": scope, "layers": layers, "spare": spare}
    pruning = {name: value for name, value in asked.items() if value or value == 0}
    stages = _emittable(requested_stages(recipe, optim_level, pruning, options), output)
    loaded = load_model(model)
    sizes = _frozen_sizes(loaded, stages)
    files = settings.files.reading(*made_from, *of_run(loaded, calib, preset), *evaluation_files(stages))
    if isinstance(recipe, str | Path):
        files = files.reading(*of_recipe(recipe))
    files.writing(*stage_writes(stages, loaded, output, keep_stages)).check()
    settings = replace(settings, files=Files())
    calib = repeatable(calib)  # every stage reads it
    report = CompressReport(source_name(model), stages.to_dict(), input_bytes=input_bytes(model, loaded))
    report.accepted = settings.accept
    with scratch() as made, open_calib(calib, loaded, preset, settings, sizes) as data:
        refuse_copies(data, sizes.inputs, len(split(len(data), HOLDOUT)[1]))
        report.notes += () if data.random else data.notes
        source = Path(model) if isinstance(model, str | Path) else made / "input.onnx"
        if isinstance(model, ModelProto):
            write(loaded, source)
        # the stages read files in other folders
        inputs = StageInputs(source, calib, data, with_tokenizer(plain_preset(preset), model), settings)
        ran = run_recipe_stages(stages, inputs, Path(keep_stages) if keep_stages is not None else made)
        _measure(ran, inputs, sizes, report, kept=keep_stages is not None)
        if output is not None:
            report.outputs += _emit(ran, inputs, follow_link(Path(output)))
        origin = source_of(calib, preset, data)
    if output is not None:
        path = ran.final.save(output)
        report.notes += leave_beside(ran.final.model, path, origin, [path, *artifact_files(report.outputs)])
        target = next((stage.target for stage in stages.stages[::-1] if isinstance(stage, Recipe)), "ort")
        report.outputs.insert(0, Artifact(str(path), target, "onnx", report.stages[-1].bytes))
    report.sparsity = proof.sparsity(ran.final.model)
    report.seconds, report.peak_rss_mb = time.perf_counter() - started, peak_rss_mb()
    return CompressResult(ran.final.model, report)


def _emittable(stages: Stages, output: str | Path | None) -> Stages:
    """The stages, with standard operators if other runtimes read the result.

    Raises:
        UsageError: There is no output for an emit stage.
        TargetError: A runtime to emit for is not installed.
    """
    emits = [stage for stage in stages.stages if isinstance(stage, EmitStage)]
    if any(set(stage.to) != {artifacts.ONNX} for stage in emits):
        stages = with_portable_ops(stages)
    for stage in emits:
        artifacts.formats_of(stage.to, None, ORT)
        if output is None:
            raise UsageError(
                f"there is no output to emit {', '.join(stage.to)} to", "give one; artifacts take its stem"
            )
    return stages


def _frozen_sizes(model: Model, stages: Stages) -> FixedShapes:
    """The input sizes that the last stage fixes.

    Raises UsageError if an earlier stage fixes sizes: the stages after it read samples one by one.
    """
    *others, last = [(i, stage) for i, stage in enumerate(stages.stages, 1) if not isinstance(stage, EmitStage)]
    for number, stage in others:
        if isinstance(stage, Recipe) and (stage.batch is not None or stage.shapes):
            raise UsageError(f"stage {number} (quantize) freezes sizes", "let the last stage do so: put it there")
    return fixed_shapes_for(model, last[1].batch, last[1].shapes) if isinstance(last[1], Recipe) else NO_FIXED_SHAPES


def _emit(ran: RanStages, inputs: StageInputs, output: Path) -> Iterator[Artifact]:
    """Run the emit stages; artifacts of an earlier stage have its name in theirs."""
    for stage, path in ran.emits:
        last = not ran.models or path == ran.models[-1].path
        options = EmitOptions(hardware=stage.hardware, half=stage.half_weights, threads=inputs.settings.threads)
        yield from emit(
            path, to=stage.to, output=output if last else stage_output(output, path.stem), calib=inputs.calib,
            preset=inputs.preset, options=options, reference=inputs.source, settings=inputs.settings,
        ).outputs  # fmt: skip


def _measure(ran: RanStages, inputs: StageInputs, sizes: FixedShapes, report: CompressReport, *, kept: bool) -> None:
    """Compare the file of every stage with the given model on held-out samples, and time all in interleaved runs."""
    data = inputs.data
    judges = batched(data.subset(split(len(data), HOLDOUT)[1]), sizes.inputs)
    with runnable_on_cpu([inputs.source, *(made.path for made in ran.models)]) as (runs, notes):
        report.notes += notes
        _measure_runs(ran.models, runs, judges, inputs, sizes, report, kept=kept)


def _measure_runs(
    models: Sequence[StageModel],
    runs: Sequence[Path],
    judges: Dataset,
    inputs: StageInputs,
    sizes: FixedShapes,
    report: CompressReport,
    *,
    kept: bool,
) -> None:
    """Report a row per stage. runs: the files that ONNX Runtime runs, of the given model and of each stage."""
    threads, random = inputs.settings.threads, inputs.data.random
    feeds = [judges[i].feed for i in range(min(len(judges), _BENCH_FEEDS))]
    before, *times = bench(runs, feeds, threads=threads, seconds=inputs.settings.bench_seconds)
    size = inputs.source.stat().st_size
    report.stages.append(StageRow("input", report.input, size, None, None, before.median_ms, before.ratio, None))
    for made, run, timed in zip(models, runs[1:], times, strict=True):
        found = compare(runs[0], run, judges, threads=threads, sizes=sizes)
        known = (None, None) if random else (found.sqnr_db, found.agreement)
        report.stages.append(
            StageRow(
                made.path.stem, str(made.path) if kept else "", made.path.stat().st_size, *known,
                before.median_ms / timed.ratio, timed.ratio, made.report,
            )
        )  # fmt: skip
        report.skips += made.report.skips
    report.samples = {"held_out": len(judges), "source": inputs.data.source, "random": random}
    proof.record_comparison(report, found, random=random)
    report.latency = timed.against(before)
    if isinstance(made.report, Report):
        report.int8_macs_share, report.graph = made.report.int8_macs_share, made.report.graph
