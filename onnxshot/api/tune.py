"""Mixed precision under a goal: which nodes go back to float, found by measuring candidates.

All int8 comes first. Nodes are put in order by what they are measured to cost, per latency they would add; bisection
finds how many of the first of them must go back to float. Half of those are kept, what the others bring is measured
again, and so on; at last each one is tried without. Where all int8 is slower than a goal allows, nodes that are slower
in int8 than in float go back first. Every candidate is measured. What recovers accuracy is chosen for all int8, and may
be another choice for other nodes in float: the cheaper candidates that come closest are made anew, as `quantize` makes
them, before one is rejected. The best one is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.api.quantize import quantize
from onnxshot.arguments import checked
from onnxshot.calibration.batches import batched
from onnxshot.calibration.preset import Preset
from onnxshot.delivery.artifacts import ONNX
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.output_files import of_result
from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Files
from onnxshot.graph import Model
from onnxshot.recipes.recipe import Recipe
from onnxshot.results.quantized import Result
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.search.goal import TIMES, Goal, Judge
from onnxshot.search.mixed_precision import MixedPrecisionSearch, pareto_front
from onnxshot.search.workbench import workbench
from onnxshot.settings import Settings


@checked
@blames_model
def tune(
    model: str | Path | ModelProto,
    calib: Any,
    goal: Goal,
    *,
    stats: str | Path | None = None,
    output: str | Path | None = None,
    preset: str | Preset | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> Result:
    """Quantize a model so that it reaches a goal, with as few nodes in float as the search finds to be enough.

    With a least accuracy, the candidate that reaches it at the least cost is taken; with limits on latency or size
    alone, the most accurate one that keeps them. What is written is what `quantize` writes for the recipe found.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: calibration data, as `quantize` takes it; the goal is measured on the part calibration does not see.
        goal: what to reach, and how long to search.
        stats: statistics that `calibrate` wrote.
        output: where to write; None keeps the result in memory.
        preset: preprocessing of pictures.
        recipe: what to do where the goal does not say otherwise; `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe, by name.

    Returns:
        The best result found, whether or not it reaches the goal: `report.goal` says so, `report.recipe` makes the same
        file again, `report.pareto` holds the candidates that no other beats.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    started = time.perf_counter()
    recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **options})
    settings, calib = settings or Settings(), _again(calib)
    if goal.min_sqnr is not None and isinstance(calib, str) and calib == "random":
        hint = "give --calib DATA: what the outputs of random inputs keep says nothing about yours"
        raise UsageError("min_sqnr is a goal for real data, and the samples are random", hint)
    model_reads = of_model_file(model)
    files = settings.files.reading(
        *model_reads, *of_run(None, calib, preset, stats=stats, evaluate=goal.evaluate)
    )
    if output is not None:
        files = files.writing(*of_result(Path(output), external=len(model_reads) > 1))
    files.check()
    settings = replace(settings, files=Files())
    deadline = math.inf if goal.budget is None else started + 60 * goal.budget
    with (
        workbench(model, calib, stats=stats, preset=preset, recipe=recipe, settings=settings) as bench,
        scratch() as folder,
    ):
        reference = bench.reference.at(folder / "float.onnx")
        # Candidates are not frozen, but measured at the sizes that the written file will have.
        judge = Judge(goal, reference, batched(bench.held_out, bench.prepared.fixed_shapes.inputs), settings)
        quiet = replace(settings, verify=False, progress=None)

        def remake(recipe: Recipe) -> Model:
            return quantize(model, calib, stats=stats, preset=preset, recipe=recipe, settings=quiet).model

        search = MixedPrecisionSearch(bench, goal, judge, folder, deadline, recipe, remake)
        chosen = search.run()
        searched = time.perf_counter() - started
        recipe = search.recipe(chosen) if chosen else recipe
        result = quantize(
            model, calib, stats=stats, output=output, preset=preset, recipe=recipe, settings=settings,
            emit=(ONNX,) if output is not None else None,
        )  # fmt: skip
        written = Path(output) if output is not None else result.save(folder / "result.onnx")
        found = judge.measure(written, recipe.exclude)
        if found.latency_ms is not None:
            found = replace(found, latency_ms=judge.latency_ms(written, times=TIMES))
    missed = goal.missed(found) | search.unworthy(chosen)
    result.report.goal = {
        **goal.limits(), **{k: v for k, v in asdict(found).items() if v is not None and k != "exclude"},
        "reached": not missed, "missed": list(missed.values()), "float_score": judge.float_score,
        "float_nodes": len(chosen), "candidates": len(search.seen), "budget_spent": search.out_of_time,
    }  # fmt: skip
    result.report.pareto = [asdict(row) for row in pareto_front(list(search.seen.values()))]
    result.report.timings["search"] = searched
    result.report.seconds = time.perf_counter() - started
    return result


def _again(calib: Any) -> Any:
    """Data that can be read twice."""
    if callable(following := getattr(calib, "get_next", None)):
        return list(iter(following, None))
    return list(calib) if isinstance(calib, Iterator) else calib
