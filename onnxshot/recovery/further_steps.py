"""The steps of effort "best": from the result of "balanced" on, to better ranges and to weights rounded again.

Each step is judged as a whole result, its biases corrected, on samples that neither it nor the result before was
learned from. A step that does not carry over to them is dropped, so the last result is no worse there than the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import Judge
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.layer_reconstruction import Repair
from onnxshot.recovery.plan_candidates import Candidate, Repairs, learned, with_repairs
from onnxshot.recovery.range_search import refine_ranges
from onnxshot.rewriting.apply_plan import apply_plan
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.settings import Settings
from onnxshot.wording import counted

_GAIN_DB = 0.2  # least gain of a step, in the mean of a typical sample and of all together; less is often chance
_LOST_DB = 0.5  # what either of the two may lose where the other one gains
_REFINED_ON = (24, 96)  # least and most samples that ranges are refined on;
_REFINED_MACS = 1 << 32  # between the two, as many as take this many multiply-accumulates


@dataclass(frozen=True, slots=True)
class FurtherSteps:
    """The steps, for one model.

    Attributes:
        judge: compares models with the given one.
        learn: samples to learn from.
        decide: numbers of other samples, which decide what is kept.
        planned: plans a model by a recipe and evidence.
        settings: threads, and the progress callback.
    """

    judge: Judge
    learn: Sequence[Sample]
    decide: Sequence[int]
    planned: Callable[[Model, Recipe, Evidence], Plan]
    settings: Settings

    def ranged(self, first: Candidate, made: Model, recipe: Recipe) -> Candidate:
        """Choose ranges of the tensors that cause most of the error by the error of the outputs, if that is better.

        Args:
            first: the result of "balanced", with its repairs.
            made: its model, quantized and without these repairs; it is not changed.
            recipe: the recipe of its plan.

        Returns:
            The better result, with its repairs.

        Raises:
            ModelError: a model does not run.
        """
        if first.repairs is None or not self.learn or not self.decide:
            return first
        evidence = self._chosen(first, recipe)
        if evidence.chosen == first.evidence.chosen:
            return first
        plan, other = self.planned(first.model, recipe, evidence), copy_of(first.model)
        apply_plan(other, plan, recipe)
        found: Mapping[str, Repair] = {}
        if first.repairs.found:  # else corrected biases were no better
            found = learned(LeanModel.of(first.model), other, plan, self.learn, self.settings, rounding=False)
        better, said = self._compared((made, first.repairs.found), (other, found))
        if not better:
            return first
        biases = "biases were corrected for " if found else ""
        repairs = Repairs(found, f"{biases}ranges chosen by the error of the outputs: {said}")
        return replace(first, plan=plan, evidence=evidence, refined=True, repairs=repairs)

    def rounded(self, teacher: LeanModel, model: Model, plan: Plan, so_far: Repairs) -> Repairs:
        """Round weights again, layer by layer, if that is better than the repairs so far.

        Args:
            teacher: the float model that the plan was made for, which layers learn from.
            model: the quantized model without repairs; it is not changed.
            plan: what it was quantized by.
            so_far: the repairs so far.

        Raises:
            ModelError: a model does not run.
        """
        found = learned(teacher, model, plan, self.learn, self.settings, rounding=True) if self.decide else {}
        if not found:
            return so_far
        better, said = self._compared((model, so_far.found), (model, found))
        if not better:
            return Repairs(so_far.found, f"{so_far.said}; weights were not rounded again: {said}")
        return Repairs(found, f"weights were rounded again, layer by layer: {said}{_in_blocks(found)}")

    def _compared(self, *both: tuple[Model, Mapping[str, Repair]]) -> tuple[bool, str]:
        """Whether the second of two quantized models with repairs is better, and what was measured, in words.

        All samples together tell of the worst ones, and a typical one of the others.
        """
        one, other = self.judge.measure((with_repairs(model, repairs) for model, repairs in both), self.decide)
        gains = other.typical_db - one.typical_db, other.balanced_db - one.balanced_db
        said = f"{one.typical_db:.1f} dB before, {other.typical_db:.1f} dB after"
        if gains[1] < min(gains[0], 0.0):  # the reason why it may not be kept
            said = f"{one.balanced_db:.1f} dB before, {other.balanced_db:.1f} dB after, all together"
        said += f", on {counted(len(self.decide), 'sample')} kept to decide"
        return sum(gains) / 2 >= _GAIN_DB and min(gains) >= -_LOST_DB, said

    def _chosen(self, given: Candidate, recipe: Recipe) -> Evidence:
        """The evidence of a candidate with the ranges that are best for the outputs."""
        work = sum(row.macs for row in sizes_on(given.model, self.learn[0].feed).work(given.model))
        count = min(max(_REFINED_MACS // max(work, 1), _REFINED_ON[0]), _REFINED_ON[1])
        return refine_ranges(
            given.model, given.plan, given.evidence, recipe.range_method, self.learn[:count],
            threads=self.settings.threads, progress=self.settings.progress,
        )  # fmt: skip


def _in_blocks(repairs: Mapping[str, Repair]) -> str:
    """Which layers were too wide to be rounded as a whole, in words; empty for none."""
    wide = [node for node, repair in repairs.items() if repair.blocks > 1]
    if not wide:
        return ""
    named = f"{wide[0]!r}" if len(wide) == 1 else f"{wide[0]!r} and {len(wide) - 1} more"
    blocks = max(repairs[node].blocks for node in wide)
    return f"; inputs of {named} were rounded in up to {blocks} blocks: all second moments exceed the memory budget"
