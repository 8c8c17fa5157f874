"""Give a plan its scales, and improve it as far as the recipe's effort allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxshot.execution.placement_cache import Decision
from onnxshot.execution.statistics_source import RunStatistics
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.schemes import schemes
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.improver import Improver
from onnxshot.report.timings import Timed, untimed
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared
from onnxshot.verification.reference import Reference


@dataclass(frozen=True, slots=True)
class FinalPlan:
    """The plan that a model is rewritten by.

    Attributes:
        prepared: the float model that the plan is for; equalized, smoothed or on an input grid where that helped.
        plan: every decision, with scales where they are known.
        evidence: what the scales were chosen from; None for a plan without scales.
        decided: the recipe with what the trials found; a run with it finds the same without trials.
        improver: repairs the quantized model later; None where nothing can be tried.
        inferences: how many samples were run to observe changed models again.
        gathered: the statistics, with those of samples that were calibrated on once they had chosen.
        notes: what was done.
        asked: the recipe before the trials added anything; None where none were made.
        look: what was measured of groups of nodes in other forms (`Report.look`).
        learned_on: how many samples the integers of weights in blocks were learned from; 0 where none were.
    """

    prepared: Prepared
    plan: Plan
    evidence: Evidence | None
    decided: Recipe
    improver: Improver | None = None
    inferences: int = 0
    gathered: RunStatistics | None = None
    notes: tuple[str, ...] = ()
    look: tuple[Mapping[str, Any], ...] = ()
    asked: Recipe | None = None
    learned_on: int = 0

    def repair(self, teacher: LeanModel, model: Model, plan: Plan) -> str:
        """Repair a quantized model where there is data to learn from, and return in words what was done.

        Args:
            teacher: the float model that the plan was made for.
            model: the quantized model; it is changed in place.
            plan: what it was quantized by.
        """
        return self.improver.repair(teacher, model, plan) if self.improver is not None else ""


def improve_plan(
    prepared: Prepared,
    plan: Plan,
    gathered: RunStatistics | None,
    samples: Samples,
    reference: Reference | None,
    timed: Timed = untimed,
    evidence: Evidence | None = None,
    times: Decision | None = None,
) -> FinalPlan:
    """Choose scales from the statistics, then keep what measurably brings the outputs closer to the reference.

    Args:
        prepared: the normalized float model.
        plan: what is quantized, without scales.
        gathered: statistics of the tensors that the plan observes.
        samples: what candidates are measured on; without data nothing is tried.
        reference: the model that outputs are compared with.
        timed: measures the time of each trial.
        evidence: of the statistics, where it is known: it keeps the ranges that were chosen.
        times: of the kernels, where they were measured.
    """
    model, recipe = prepared.model, prepared.recipe
    if gathered is None:
        if not prepared.trained:
            return FinalPlan(prepared, plan, None, recipe)
        every_scale_known = Evidence({})
        return FinalPlan(prepared, prepared.plan(evidence=every_scale_known), every_scale_known, recipe)
    evidence = evidence or Evidence(gathered.statistics.tensors)
    plan = prepared.plan(evidence=evidence)
    float8 = schemes(prepared.target, recipe)[0].dtype.floating  # no trial was seen to improve it
    if samples.data is None or reference is None or float8:
        return FinalPlan(prepared, plan, evidence, recipe)
    improver = Improver(
        model, reference.model, prepared.target, recipe, prepared.settings, prepared.trained, samples.data, gathered,
        timed,
    )  # fmt: skip
    best, found = improver.look(improver.best(plan, evidence), times)
    best = improver.refine(best)
    improver.release()
    decided = replace(
        recipe, grid=best.gridded, equalize=best.equalized,
        smooth=best.smoothed or (recipe.smooth and None),  # False would also switch off the fixed strength
        clip=recipe.clip if recipe.clip is not None else best.clips,
        layers={**recipe.layers, **best.layers}, look=False,
    )  # fmt: skip
    asked = replace(recipe, look=False)
    if best.layers:
        recipe = decided  # the trials were made without these layers, and a replay would make them with them
    elif found.rows:
        recipe = replace(recipe, look=False)
    notes = (*improver.notes, *best.notes(), *([found.note] if found.note else ()))
    return FinalPlan(
        replace(prepared, model=best.model, recipe=recipe), best.plan, best.evidence, decided, improver,
        improver.inferences, improver.gathered, notes, found.rows, asked,
    )  # fmt: skip
