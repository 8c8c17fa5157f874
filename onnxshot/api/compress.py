"""`compress`: stages in one run, such as prune and quantize; each is held against the given model, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.api.emit import emit
from onnxshot.api.recipe_stage import StageResult, run_recipe_stage
from onnxshot.arguments import checked
from onnxshot.calibration.batches import batched, refuse_copies
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_function, of_recipe, of_run
from onnxshot.delivery.output_files import is_external, of_model, of_result
from onnxshot.delivery.record import leave_beside, source_of
from onnxshot.delivery.write_results import input_bytes, peak_rss_mb, source_name
from onnxshot.errors import ModelError, OnnxshotError, UsageError
from onnxshot.execution.statistics_source import HOLDOUT, open_calib
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Files, Read, Write
from onnxshot.files.links import follow_link
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import NO_FIXED_SHAPES, FixedShapes
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.graph.weight_sparsity import lost_zeros
from onnxshot.precision16.bfloat16_emulation import runnable_here
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.sparsity_level import at_level
from onnxshot.recipes.stages import EmitStage, PruneStage, ShrinkStage, Stage, Stages, kind_of
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.results.compressed import CompressReport, CompressResult, StageRow
from onnxshot.results.shrunk import ShrinkReport
from onnxshot.rewriting.model_inputs import fixed_shapes_for
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_bench import bench
from onnxshot.settings import Settings
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare

_TIMED_ON = 8  # samples
_DONE = {"prune": "pruned", "shrink": "shrunk", "quantize": "quantized"}


@checked
@blames_model
def compress(
    model: str | Path | ModelProto,
    calib: Any,
    *,
    recipe: Stages | Recipe | str | Path | None = None,
    optim_level: float | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    scope: str | None = None,
    layers: Mapping[str, float] | None = None,
    spare: Sequence[str] = (),
    output: str | Path | None = None,
    keep_stages: str | Path | None = None,
    preset: str | Preset | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> CompressResult:
    """Run stages on a model in order, by default prune and quantize; a zero, once made, is a zero of the result.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: samples, as `quantize` takes them; the last quarter of them judges all stages, and none learns from it.
        recipe: the stages, or the path of a recipe file; how to quantize, where it is that alone.
        optim_level: from 0, int8 alone, to 1, int8 with 70 % zeros, in place of a recipe and of what follows.
        sparsity: share of the weights that become zero, as `prune` takes it. This and what follows is the short form of
            two stages, prune and quantize.
        pattern: of the zeros, as `prune` takes it.
        scope: how zeros are shared out, as `prune` takes it.
        layers: glob -> sparsity, as `prune` takes it.
        spare: globs of what is not pruned.
        output: where to write; None keeps the result in memory.
        keep_stages: a folder for the file of every stage.
        preset: preprocessing of pictures.
        settings: how to run it.
        **options: fields of the recipe of quantization, by name.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says in which stage, what was found, what to do.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    if calib is None:
        raise UsageError("there are no samples", "give --calib DATA: every stage learns from it")
    asked = {"sparsity": sparsity, "pattern": pattern, "scope": scope, "layers": layers, "spare": spare}
    pruning = {name: value for name, value in asked.items() if value or value == 0}
    if optim_level is None:
        stages = _asked(recipe, pruning, options)
    elif recipe is None and not pruning:
        stages = at_level(optim_level, options)
    else:
        beside = "a recipe" if recipe is not None else next(iter(pruning))
        raise UsageError(f"an optim level is given beside {beside}", "it is a recipe of its own: give one of them")
    if any(isinstance(stage, EmitStage) and set(stage.to) != {artifacts.ONNX} for stage in stages.stages):
        stages = _standard(stages)
    for stage in stages.stages:
        if isinstance(stage, EmitStage):
            artifacts.formats_of(stage.to, None, ORT)  # raises where a runtime is missing
            if output is None:
                raise UsageError(
                    f"there is no output to emit {', '.join(stage.to)} to", "give one; artifacts take its stem"
                )
    loaded = load_model(model)
    sizes = _sizes_of(loaded, stages)
    files = settings.files.reading(*of_run(loaded, calib, preset), *_evaluations(stages))
    if isinstance(recipe, str | Path):
        files = files.reading(*of_recipe(recipe))
    files.writing(*_writes(stages, loaded, output, keep_stages)).check()
    settings = replace(settings, files=Files())
    calib = list(calib) if isinstance(calib, Iterator) else calib  # every stage reads it
    report = CompressReport(source_name(model), stages.to_dict(), input_bytes=input_bytes(model, loaded))
    with (
        scratch() as made,
        open_calib(calib, loaded, preset, settings, sizes) as data,
    ):
        refuse_copies(data, sizes.inputs, len(split(len(data), HOLDOUT)[1]))
        folder = Path(keep_stages) if keep_stages is not None else made
        source = Path(model) if isinstance(model, str | Path) else made / "input.onnx"
        if isinstance(model, ModelProto):
            write(loaded, source)
        run = _Run(stages, source, folder, calib, preset, settings, data, sizes)
        final = run.result()
        run.measure(report, kept=keep_stages is not None)
        if output is not None:
            report.outputs += run.emit(follow_link(Path(output)))
        origin = source_of(calib, preset, data)
    if output is not None:
        path = final.save(output)
        report.notes += leave_beside(final.model, path, origin, [path, *_files_of(report.outputs)])
        target = next((stage.target for stage in stages.stages[::-1] if isinstance(stage, Recipe)), "ort")
        report.outputs.insert(0, Artifact(str(path), target, "onnx", report.stages[-1].bytes))
    report.sparsity = proof.sparsity(final.model)
    report.seconds, report.peak_rss_mb = time.perf_counter() - started, peak_rss_mb()
    return CompressResult(final.model, report)


def _standard(stages: Stages) -> Stages:
    """The stages with standard operators alone: other runtimes than ONNX Runtime read what comes of them."""
    return Stages(
        tuple(
            replace(stage, portable_ops=True) if isinstance(stage, Recipe) and stage.quantizes else stage
            for stage in stages.stages
        )
    )


def _asked(
    recipe: Stages | Recipe | str | Path | None, pruning: Mapping[str, Any], options: Mapping[str, Any]
) -> Stages:
    """The stages of a recipe, or of the short form; how to quantize may come from a recipe there."""
    if isinstance(recipe, str | Path):
        recipe = load_stages(recipe)
    given = () if recipe is None else (recipe,) if isinstance(recipe, Recipe) else recipe.stages
    short = [*pruning, *options]
    if given and not short:
        return Stages(given)
    base = given[0] if given else Recipe()
    if len(given) > 1 or not isinstance(base, Recipe):
        raise UsageError(f"{short[0]} is given beside a recipe of stages", "write it into one of its stages")
    quantized = Recipe.from_dict({**base.to_dict(), **options})
    if given and not pruning:
        return Stages((quantized,))
    renamed = {"exclude" if name == "spare" else name: value for name, value in pruning.items()}
    return Stages((PruneStage.from_dict(renamed), quantized))


def _sizes_of(model: Model, stages: Stages) -> FixedShapes:
    """What the last stage that changes the model freezes.

    Raises UsageError where another does: those behind it learn from single samples.
    """
    *others, last = [(i, stage) for i, stage in enumerate(stages.stages, 1) if not isinstance(stage, EmitStage)]
    for number, stage in others:
        if isinstance(stage, Recipe) and (stage.batch is not None or stage.shapes):
            raise UsageError(f"stage {number} (quantize) freezes sizes", "let the last stage do so: put it there")
    return fixed_shapes_for(model, last[1].batch, last[1].shapes) if isinstance(last[1], Recipe) else NO_FIXED_SHAPES


@dataclass(slots=True)
class _Run:
    """Stages under way: each reads the file that the one before has written."""

    stages: Stages
    source: Path
    folder: Path
    calib: Any
    preset: str | Preset | None
    settings: Settings
    data: Dataset
    sizes: FixedShapes
    done: list[tuple[str, Path, Report | ShrinkReport]] = field(default_factory=list)
    emits: list[tuple[EmitStage, Path]] = field(default_factory=list)  # what goes into which formats

    def result(self) -> StageResult:
        """Run all of them; what the last one gives."""
        path, pruned = self.source, None
        for i, (stage, name) in enumerate(zip(self.stages.stages, _names(self.stages), strict=True)):
            if isinstance(stage, EmitStage):
                self.emits.append((stage, path))
                continue
            try:
                made = run_recipe_stage(stage, path, self.calib, self.data, preset=self.preset, settings=self.settings)
                if pruned is not None and not isinstance(stage, ShrinkStage):
                    _refuse_lost(pruned, made.model, stage)
            except OnnxshotError as e:
                e.message = f"stage {i + 1} ({kind_of(stage)}): {e.message}"
                raise
            path = made.save(self.folder / f"{name}.onnx")
            self.done.append((path.stem, path, made.report))
            if isinstance(stage, PruneStage) or (pruned is not None and isinstance(stage, ShrinkStage)):
                pruned = made.model
        return made

    def emit(self, output: Path) -> Iterator[Artifact]:
        """Write what is to be emitted, with the output's stem, and the name of its stage where that is not the last."""
        for stage, path in self.emits:
            last = not self.done or path == self.done[-1][1]
            place = output if last else _place_beside(output, path.stem)
            options = EmitOptions(hardware=stage.hardware, half=stage.half_weights, threads=self.settings.threads)
            yield from emit(
                path, to=stage.to, output=place, calib=self.calib, preset=self.preset, options=options,
                reference=self.source, settings=self.settings,
            ).outputs  # fmt: skip

    def measure(self, report: CompressReport, *, kept: bool) -> None:
        """Hold the file of every stage against the input, time all in turns, and tell."""
        judges = batched(self.data.subset(split(len(self.data), HOLDOUT)[1]), self.sizes.inputs)
        feeds = [judges[i].feed for i in range(min(len(judges), _TIMED_ON))]
        paths = [self.source, *(path for _, path, _ in self.done)]
        with runnable_here(paths) as (runs, notes):
            report.notes += notes
            self._measure_runs(report, runs, judges, feeds, kept=kept)

    def _measure_runs(
        self, report: CompressReport, runs: Sequence[Path], judges: Dataset, feeds: Sequence[Any], *, kept: bool
    ) -> None:
        """Compare and time the files of the stages as ONNX Runtime runs them; the first is the input's."""
        threads = self.settings.threads
        before, *times = bench(runs, feeds, threads=threads, seconds=self.settings.bench_seconds)
        size = self.source.stat().st_size
        report.stages.append(StageRow("input", report.input, size, None, None, before.median_ms, before.ratio, None))
        for (name, path, made), run, timed in zip(self.done, runs[1:], times, strict=True):
            found = compare(runs[0], run, judges, threads=threads, sizes=self.sizes)
            known = (None, None) if self.data.random else (found.sqnr_db, found.agreement)
            report.stages.append(
                StageRow(
                    name, str(path) if kept else "", path.stat().st_size, *known,
                    before.median_ms / timed.ratio, timed.ratio, made,
                )
            )  # fmt: skip
            report.skips += made.skips
        report.samples = {"held_out": len(judges), "source": self.data.source, "random": self.data.random}
        proof.record_comparison(report, found, random=self.data.random)
        report.latency = timed.against(before)
        if isinstance(made, Report):
            report.int8_macs_share, report.graph = made.int8_macs_share, made.graph


def _refuse_lost(pruned: Model, after: Model, stage: Stage) -> None:
    """Raise ModelError where a weight has a zero no more."""
    lost = lost_zeros(pruned, after)
    if lost:
        hint = "keep_zeros: true keeps them" if isinstance(stage, PruneStage) else "report this"
        raise ModelError(f"zeros of {len(lost)} weights are lost, such as {lost[0]!r}", hint)


def _evaluations(stages: Stages) -> Iterator[Read]:
    """The code that scores models in a stage."""
    for stage in stages.stages:
        if isinstance(stage, ShrinkStage):
            yield from of_function(stage.evaluate, "the evaluation")


def _writes(stages: Stages, model: Model, output: str | Path | None, kept: str | Path | None) -> Iterator[Write]:
    """All that a run of these stages writes."""
    names, external = _names(stages), is_external(model)
    if kept is not None:
        for name in filter(None, names):
            place = Path(kept) / f"{name}.onnx"
            yield from of_model(place, "the kept stage", external=external, named=False, option="--keep-stages")
    if output is None:
        return
    output, final = follow_link(Path(output)), [name for name in names if name][-1]
    yield from of_result(output, external=external)
    for i, stage in enumerate(stages.stages):
        if isinstance(stage, EmitStage):
            stem = model.path.stem if model.path is not None else "input"
            before = next((name for name in reversed(names[:i]) if name), stem)
            place = output if before == final else _place_beside(output, before)
            for name in stage.to:
                if name != artifacts.ONNX or place != output:
                    yield from of_result(place, (name,), external=external, recorded=False, named=place == output)


def _files_of(artifacts: Sequence[Artifact]) -> Iterator[Path]:
    """The files of artifacts."""
    for path in (Path(artifact.path) for artifact in artifacts):
        yield path
        if path.suffix == ".xml":
            yield path.with_suffix(".bin")


def _place_beside(output: Path, stem: str) -> Path:
    """Where artifacts of the model of an earlier stage go."""
    return output.with_name(f"{output.stem}.{stem}{output.suffix}")


def _names(stages: Stages) -> list[str]:
    """What the model of every stage is called, numbered where there are several of a kind; empty for one that emits."""
    names = [_name(stage) for stage in stages.stages]
    numbers = [names[: i + 1].count(name) if name and names.count(name) > 1 else "" for i, name in enumerate(names)]
    return [f"{name}{number}" for name, number in zip(names, numbers, strict=True)]


def _name(stage: Stage) -> str:
    """What the report calls the model that a stage gives."""
    return "halved" if isinstance(stage, Recipe) and not stage.quantizes else _DONE.get(kind_of(stage), "")
