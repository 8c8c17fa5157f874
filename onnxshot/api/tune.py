"""`tune`: quantize a model so that it reaches a goal, with as few nodes in float as possible."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from onnxshot.api.quantize import quantize
from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.batches import batched
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, repeatable, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.artifacts import ONNX
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.output_files import of_result
from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Files
from onnxshot.graph import Model
from onnxshot.graph.model import data_suffix
from onnxshot.planning.block_schemes import bits_of
from onnxshot.planning.node_recipe import with_measured_reasons
from onnxshot.recipes.recipe import Recipe, with_mode
from onnxshot.recipes.recipe_options import RecipeOptions, listed
from onnxshot.report.advice import decibels
from onnxshot.report.gain_findings import float_in_effect
from onnxshot.report.report import Report
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.results.quantized import Result
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.search.block_search import BlockSearch
from onnxshot.search.goal import TIMES, Goal, Judge, Measured, pareto_front
from onnxshot.search.mixed_precision import MixedPrecisionSearch
from onnxshot.search.workbench import workbench
from onnxshot.settings import Settings, budgeted

_SHOWN_DB = 0.05  # figures that differ by less are shown alike


@listed
@checked
@budgeted
@one_blas_thread()
@blames_model
def tune(
    model: ModelSource,
    calib: Calib | None,
    goal: Goal,
    *,
    stats: str | Path | None = None,
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Unpack[RecipeOptions],
) -> Result:
    """Quantize a model so that it reaches a goal, with as few nodes in float as the search finds to be enough.

    With a minimum accuracy in the goal, the cheapest candidate that reaches it is chosen. With limits on latency or
    size alone, the most accurate candidate within them is chosen. The result is what `quantize` makes of the recipe
    that was found.

    Args:
        model: path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: calibration data, as `quantize` takes it. The goal is measured on the held-out samples.
        goal: what to reach, and how long to search.
        stats: path of a statistics file that `calibrate` wrote.
        output: where to write; None keeps the result in memory.
        preset: how samples become inputs.
        transform: called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        recipe: what to do apart from the search. `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe by name.

    Returns:
        The best result found, whether or not it reaches the goal. `report.goal` holds what was reached and missed,
        `report.recipe` makes the same file again, and `report.pareto` lists the candidates that no other one beats.

    Raises:
        ModelError: the model cannot be read or run.
        CalibrationError: samples or statistics do not fit the model.
        UsageError: there are no samples, the goal cannot be measured on them, or the evaluation function fails.
        TargetError: the target cannot run what the recipe asks for.

    Example:
        >>> result = onnxshot.tune("model.onnx", "samples/", onnxshot.Goal(min_sqnr=30), output="model.int8.onnx")
        >>> result.report.goal["reached"], result.report.goal["float_nodes"]
    """
    calib = with_transform(calib, transform)
    started = time.perf_counter()
    made_from, model = origin_of(model), plain_source(model)
    over = with_mode(options) if recipe is None else options
    given_recipe = recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **over})
    settings, calib = settings or Settings(), repeatable(calib)
    for name in ("min_sqnr", "max_perplexity_rise"):
        if getattr(goal, name) is not None and isinstance(calib, str) and calib == "random":
            hint = "give [[calib=DATA]]: accuracy on random inputs says nothing about accuracy on your data"
            raise UsageError(f"{name} is a goal for real data, and the samples are random", hint)
    model_reads = of_model_file(model)
    files = settings.files.reading(
        *made_from, *model_reads, *of_run(None, calib, preset, stats=stats, evaluate=goal.evaluate)
    )
    if output is not None:
        data = [read.path for read in model_reads[1:]]
        files = files.writing(*of_result(output, data=data_suffix(data) if data else ""))
    files.check()
    settings = replace(settings, files=Files())
    deadline = math.inf if goal.budget is None else started + 60 * goal.budget
    with (
        workbench(model, calib, stats=stats, preset=preset, recipe=recipe, settings=settings) as bench,
        scratch() as folder,
    ):
        reference = bench.reference.at(folder / "float.onnx")
        # Candidates have free input sizes, but are measured at the fixed sizes that the written file will have.
        judge = Judge(goal, reference, batched(bench.held_out, bench.prepared.fixed_shapes.inputs), settings)
        quiet = replace(settings, verify=False, progress=None)

        def remake(recipe: Recipe) -> Model:
            return quantize(model, calib, stats=stats, preset=preset, recipe=recipe, settings=quiet).model

        asked = bench.prepared.recipe  # mode auto is settled in it
        given = (bench, goal, judge, folder, deadline, asked, remake)
        in_blocks = bits_of(asked) is not None
        search = BlockSearch(*given) if in_blocks else MixedPrecisionSearch(*given)
        outcome = search.find()
        searched = time.perf_counter() - started
        recipe = outcome.recipe
        decided = replace(settings, search_seconds=0.0)  # the goal decides, not the floor
        making = partial(
            quantize, model, calib, stats=stats, output=output, preset=preset, settings=decided,
            emit=(ONNX,) if output is not None else None,
        )  # fmt: skip
        result = making(recipe=recipe)
        if goal.wants_accuracy and result.report.placed and not result.report.int8_macs_share:
            result = making(recipe=replace(recipe, place=False))  # in float, any goal of accuracy is reached
        written = Path(output) if output is not None else result.save(folder / "result.onnx")
        found = judge.measure(written, recipe.exclude)
        if found.latency_ms is not None:
            found = replace(found, latency_ms=judge.latency_ms(written, times=TIMES))
    missed = {**goal.missed(found), **outcome.missed}
    if goal.wants_accuracy and not missed and (text := float_in_effect(asdict(result.report))):
        missed["quantized"] = f"only the float model reaches it: {text}"
    if "min_sqnr" in missed:
        missed["min_sqnr"] += _which_sqnr(found, result.report, len(judge.samples))
    result.report.skips = with_measured_reasons(result.report.skips, given_recipe)
    result.report.float_weights = with_measured_reasons(result.report.float_weights, given_recipe)
    result.report.goal = {
        **goal.limits(), **{k: v for k, v in asdict(found).items() if v is not None and k not in ("exclude", "levels")},
        "reached": not missed, "missed": list(missed.values()), "float_score": judge.float_score,
        "float_nodes": outcome.floats, "candidates": len(search.seen), "budget_spent": search.out_of_time,
    }  # fmt: skip
    if outcome.levels:
        result.report.goal["levels"] = dict(outcome.levels)
    result.report.pareto = [asdict(row) for row in pareto_front(list(search.seen.values()))]
    result.report.timings["search"] = searched
    result.report.seconds = time.perf_counter() - started
    return result


def _which_sqnr(found: Measured, report: Report, samples: int) -> str:
    """Say which SQNR a goal is judged by, where the report's is another; empty where it is not.

    Args:
        found: what the goal is judged by, on the held-out samples.
        report: of the result. Where nothing was calibrated, it compares on all samples.
        samples: how many are held out.
    """
    total, judged = report.sqnr_db, report.samples.get("judged")
    if total is None or abs(found.sqnr_db - total) < _SHOWN_DB:
        return ""
    if judged != samples:
        return f" on the {samples} held-out samples, {decibels(total)} on all {judged}"
    return f", {decibels(total)} of all outputs together" if found.output else ""
