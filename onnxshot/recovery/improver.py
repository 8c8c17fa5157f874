"""Try equivalent models, other ranges and repaired weights on calibration samples, and keep the most accurate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxshot.calibration.range_methods import Range, known_methods
from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.calibration.sample_parts import TrialSamples, evenly, trial_samples
from onnxshot.calibration.stats import TensorStats, merged
from onnxshot.execution.candidate_race import CandidateError, Judge
from onnxshot.execution.observed_tensors import missing_in
from onnxshot.execution.placement_cache import Decision
from onnxshot.execution.statistics_source import RunStatistics, after_scaling, from_data
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.smoothquant import STRENGTH
from onnxshot.maths.value_grid import least_db
from onnxshot.passes.image_input_grid import METHOD, PutOnGrid, grids_of, reader_of
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import FLOAT, STATIC, Plan
from onnxshot.planning.scales import TRAINED, Evidence
from onnxshot.planning.schemes import schemes
from onnxshot.planning.smoothable import readers_of
from onnxshot.planning.trained_scales import Trained
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery import plan_candidates
from onnxshot.recovery.further_steps import FurtherSteps
from onnxshot.recovery.look import Look, Looker
from onnxshot.recovery.plan_candidates import Candidate, Repairs
from onnxshot.recovery.range_search import too_large
from onnxshot.recovery.smoothquant_strength import is_large, smoothed, strengths
from onnxshot.report.timings import Timed
from onnxshot.rewriting.apply_plan import apply_plan
from onnxshot.runtimes.ort_runtime import Runnable
from onnxshot.runtimes.parallel import in_order
from onnxshot.settings import Settings
from onnxshot.targets.base import Target

_BATCHES = (8, 8, 16)
"""Samples that candidates are compared on. Further batches are run where the earlier ones do not decide."""
_BIASES_FROM, _ALL_FROM = 12, 112  # samples that biases, and that further steps of "best", are learned from
_GRID_ON = 8  # calibration samples that an input grid is derived from
_GRID_WITHIN_DB = 21.0  # an input whose SQNR exceeds that of the outputs by this much causes little of their error
_GRID_GAIN_DB = 0.5  # least gain: padding the input by hand costs up to 4 % of a small network's time
_EQUALIZED_FROM = 12  # calibration samples, at least: fewer do not show the ranges of single channels
_SMOOTHED_FROM = 16  # calibration samples that products are computed on; half as many of a large model
_FEWEST_STRENGTHS = 3  # dynamic products with another strength than the default, at least: fewer are not worth a trial
_SMOOTHING_GAIN_DB = 0.5  # least gain: a division takes time
_CLIPPING_GAIN_DB = 1.0  # least gain of min-max ranges over clipped ones, which have less error tensor by tensor


def may_equalize(recipe: Recipe, trained: Trained) -> bool:
    """Whether channels are equalized where that helps."""
    return recipe.effort != "fast" and recipe.equalize is not False and not trained


@dataclass(slots=True)
class Improver:
    """Accuracy recovery for one model.

    Attributes:
        model: the normalized float model; it is never changed.
        reference: path or bytes of the given model, which outputs are compared with.
        target: the target of the plans.
        recipe: what was asked for; its `effort` decides what is tried.
        settings: how to run models.
        trained: scales that a quantized model brought; they rule out changes of the model.
        data: all samples.
        gathered: which samples were calibrated on, and which are held out; `best` may add some.
        timed: measures the time of each step.
        inferences: how many samples were run so far to observe changed models.
        notes: remarks on samples that were run after the calibration pass.
    """

    model: Model
    reference: Runnable
    target: Target
    recipe: Recipe
    settings: Settings
    trained: Trained
    data: Dataset
    gathered: RunStatistics
    timed: Timed
    inferences: int = field(init=False, default=0)
    notes: tuple[str, ...] = field(init=False, default=())
    _samples: TrialSamples = field(init=False)
    _beyond: TrialSamples = field(init=False)
    _further: FurtherSteps | None = field(init=False, default=None)
    _settled: Candidate | None = field(init=False, default=None)
    _judge: Judge = field(init=False)

    def __post_init__(self) -> None:
        self._judge = Judge(self.reference, self.data, self.settings.threads)
        gathered, biases = self.gathered, 0 if self.recipe.effort == "fast" else _BIASES_FROM
        self._samples, self._beyond = (
            trial_samples(len(self.data), gathered.calibrated, gathered.choosing, gathered.held_out, most)
            for most in (biases, _ALL_FROM)
        )

    def best(self, plan: Plan, evidence: Evidence) -> Candidate:
        """Return the most accurate of the candidates that the effort and the recipe allow.

        In order: equalized channels, unclipped ranges, smoothed products, input grids. Each is kept only where it
        brings the outputs closer to the reference.

        Clipped ranges lower the mean error of each tensor, but may raise the error of the outputs: in a detector, for
        example, the few large values matter most.

        Args:
            plan: the plan of `model`, with scales.
            evidence: what those scales were chosen from.
        """
        given = Candidate(self.model, plan, evidence)
        candidates = [given]
        enough = len(self.gathered.calibrated) >= _EQUALIZED_FROM or self.recipe.equalize is True
        if may_equalize(self.recipe, self.trained) and enough:
            better = self._equalized(given)
            if better is not None:
                candidates = [better] if self.recipe.equalize else [better, given]
        first = candidates[0]
        clipped = any(r.method not in ("minmax", TRAINED) for r in first.plan.ranges.values())
        if self.recipe.method == "auto" and self.recipe.clip is None and clipped:
            plain = self._planned(first.model, replace(self.recipe, clip=False), first.evidence)
            candidates.append(replace(first, plan=plain, clips=False, lead=_CLIPPING_GAIN_DB))
        best, found = first, None
        if len(candidates) > 1:
            with self.timed("try"):
                best, found = self._choose(candidates, self._glances())
        best = replace(best, equalized=best.model is not given.model)
        if self.recipe.effort != "fast" and self.recipe.smooth is not False and not self.trained:
            best = self._smoothed(best)
        return self._completed(self._gridded(best, math.inf if found is None else found.typical_db))

    def refine(self, best: Candidate) -> Candidate:
        """Choose ranges by the error of the outputs, where the effort asks for it, and keep them if that helps.

        They are kept if the result, its biases corrected, is closer to the reference than that of effort "balanced".
        """
        if self.recipe.effort != "best" or not best.plan.params:
            return best
        left_out = too_large(best.model)
        if left_out:
            return replace(best, left_out=left_out)
        with self.timed("refine"):
            recipe, made = self._recipe_of(best), copy_of(best.model)
            apply_plan(made, best.plan, recipe)
            repairs = self._repaired(LeanModel.of(best.model), made, best.plan)
            self._settled = self._further_steps().ranged(replace(best, repairs=repairs), made, recipe)
            return self._settled

    def look(self, best: Candidate, times: Decision | None = None) -> tuple[Candidate, Look]:
        """Put the groups of nodes back to float whose int8 costs the outputs more than it saves time.

        Args:
            best: the candidate with the plan to look at.
            times: of its kernels, where they were measured.

        Returns:
            The candidate with its plan, and what was found.
        """
        wanted = self.recipe.effort != "fast" and self.recipe.look is not False and self.recipe.mode == STATIC
        if not wanted or self.trained or self.data.random or all(n.how == FLOAT for n in best.plan.nodes):
            return best, Look()
        recipe = self._recipe_of(best)
        forced = {node.label for node in NodeRecipes(best.model, recipe).forced}
        with self.timed("look"):
            found = Looker(
                best.model, best.plan, recipe, lambda other: self._planned(best.model, other, best.evidence),
                self.target, self._judge, self.choosing, len(self.gathered.calibrated), forced,
                self.settings, times,
            ).look()  # fmt: skip
            if not found.layers:
                return best, found
            best = replace(best, layers={**best.layers, **found.layers})
            return replace(best, plan=self._planned(best.model, self._recipe_of(best), best.evidence)), found

    @property
    def choosing(self) -> list[int]:
        """Numbers of the samples that candidates are compared on; every prefix is evenly spaced over all of them."""
        return self._samples.choosing

    def repair(self, teacher: LeanModel, model: Model, plan: Plan) -> str:
        """Repair a quantized model layer by layer, if the effort asks for it and it helps.

        Args:
            teacher: the float model that the plan was made for.
            model: the quantized model; changed in place.
            plan: what it was quantized by.

        Returns:
            What was done, in words; empty where nothing was tried.
        """
        if self.recipe.effort == "fast" or not plan.tensors:
            return ""
        settled = self._settled
        if settled is not None and settled.repairs is not None and plan.params is settled.plan.params:
            done = settled.repairs
        else:
            done = self._repaired(teacher, model, plan)
        if self.recipe.effort == "best":
            done = self._further_steps().rounded(teacher, model, plan, done)
        self._judge.release()
        done.apply(model)
        return done.said

    def _repaired(self, teacher: LeanModel, model: Model, plan: Plan) -> Repairs:
        """What effort "balanced" repairs."""
        learn = self._read(self._samples.learned)
        checks = self._batches(self._samples.checking)
        return plan_candidates.repaired(self._judge, teacher, model, plan, learn, checks, self.settings)

    def _further_steps(self) -> FurtherSteps:
        """The steps of "best", which are learned from all samples but those that decide."""
        if self._further is None:
            learn, decide = self._read(self._beyond.learned), self._beyond.checking[: sum(_BATCHES)]
            self._further = FurtherSteps(self._judge, learn, decide, self._planned, self.settings)
        return self._further

    def release(self) -> None:
        """Let go of what only `best` needs: what calibration saw of the samples."""
        if self.gathered.kept is not None:
            self.gathered.kept.close()
        if self.recipe.effort == "fast":  # nothing is repaired, so nothing is compared any more
            self._judge.release()

    def _completed(self, best: Candidate) -> Candidate:
        """Let ranges cover the samples that the candidate was chosen on too, where those so far may be too narrow.

        They may be where the ranges of the given model had not settled, and where the model was changed. Dynamic
        products have no ranges, but factors that follow from the maxima of channels.
        """
        numbers, changed = self.gathered.choosing, best.equalized or best.smoothed
        observed = best.plan.params or best.plan.smoothing
        if not numbers or not observed or (self.gathered.settled and not changed):
            return best
        with self.timed("calibrate"):
            recipe, data = self._recipe_of(best), self.data.subset(numbers)
            found = from_data(
                best.model, best.plan, recipe, data, self.settings, 0.0, settle=False, beside=best.evidence.stats
            )  # fmt: skip
            self.inferences += found.inferences
            self.notes += found.notes
            stats = merged(best.evidence.stats, found.statistics.tensors)
            known = self.gathered.statistics
            if best.model is self.model:
                samples = tuple(sorted({*known.samples, *found.statistics.samples}))
                known = replace(known, tensors=merged(known.tensors, found.statistics.tensors), samples=samples)
            calibrated = sorted([*self.gathered.calibrated, *numbers])
            self.gathered = replace(self.gathered, statistics=known, calibrated=calibrated)
            exact = {key: one for key, one in best.evidence.chosen.items() if one.method == METHOD}
            evidence = replace(best.evidence, stats=stats, chosen=exact)
            return replace(best, plan=self._planned(best.model, recipe, evidence), evidence=evidence)

    def _planned(self, model: Model, recipe: Recipe, evidence: Evidence) -> Plan:
        return make_plan(model, self.target, recipe, evidence, self.trained)

    def _choose(
        self, candidates: Sequence[Candidate], batches: Iterable[Sequence[int]]
    ) -> tuple[Candidate, CandidateError | None]:
        def rewrite(model: Model, plan: Plan) -> object:
            return apply_plan(model, plan, self.recipe)

        return plan_candidates.choose(self._judge, candidates, rewrite, batches)

    def _recipe_of(self, given: Candidate) -> Recipe:
        recipe = self.recipe if given.clips else replace(self.recipe, clip=False)
        return replace(recipe, layers={**recipe.layers, **given.layers}) if given.layers else recipe

    def _gridded(self, given: Candidate, outputs_db: float) -> Candidate:
        """Quantize inputs on the grid that their samples lie on, such as that of 8-bit pictures.

        Args:
            given: the candidate so far.
            outputs_db: SQNR of its outputs in dB.
        """
        wanted = self.recipe.effort != "fast" and self.recipe.grid is not False and not self.trained
        names = [name for name in given.plan.tensors if reader_of(given.model, name) is not None]
        if not wanted or not names or not self.target.input_grids:
            return given
        with self.timed("grid"):
            samples = self._read(evenly(self.gathered.calibrated)[:_GRID_ON])
            if not self.recipe.grid:
                inputs_db = {
                    name: least_db([s.feed[name] for s in samples], float(given.plan.params_of(name).scale))
                    for name in names
                }
                names = [name for name in names if inputs_db[name] < outputs_db + _GRID_WITHIN_DB]
            grids = {name: found for name in names if (found := grids_of([s.feed[name] for s in samples])) is not None}
            if not grids:
                return given
            model, change = copy_of(given.model), PutOnGrid(grids)
            change.run(model)
            evidence, recipe = replace(given.evidence, chosen=dict(given.evidence.chosen)), self._recipe_of(given)
            scheme = schemes(self.target, recipe)[0]
            for name in change.made.values():
                exact = Range(0.0, 255.0, METHOD, 0.0)
                evidence.chosen.update({((name,), scheme, method): exact for method in known_methods()})
            plan = self._planned(model, recipe, evidence)
            other = replace(given, model=model, plan=plan, evidence=evidence, lead=_GRID_GAIN_DB, gridded=True)
            if self.recipe.grid:
                return other
            return self._choose([other, replace(given, lead=0.0)], self._glances())[0]

    def _equalized(self, given: Candidate) -> Candidate | None:
        """Equalize channels and calibrate again; None where there is nothing to gain."""
        with self.timed("equalize"):
            # Planned without exclusions: factors do not depend on what a search leaves out, so statistics are reused.
            whole = make_plan(given.model, self.target, Recipe(target=self.recipe.target), given.evidence)
            found = plan_candidates.equalized(given.model, whole, given.evidence.stats)
            if found is None:
                return None
            model, factors = found
            known = {name: stats for name, stats in given.evidence.stats.items() if name not in factors}
            derived, runs = after_scaling(self.gathered, given.model, factors, self.data, self.settings)
            self.inferences += runs
            known |= derived
            if missing_in(known, list(self.gathered.statistics.tensors), self.gathered.by_channel):
                known = dict(self._observed(model, known))
            evidence = Evidence(known)
            plan = make_plan(model, self.target, self.recipe, evidence)
            return replace(given, model=model, plan=plan, evidence=evidence)

    def _smoothed(self, given: Candidate) -> Candidate:
        """Move outliers of activations into weights (SmoothQuant) for products, and so outputs, that gain by it."""
        calibrated = self.gathered.calibrated
        # Without exclusions, as for equalization: factors do not depend on what a search leaves out.
        whole = make_plan(given.model, self.target, replace(self.recipe, exclude=()))
        if not readers_of(given.model, whole, STATIC) and not given.plan.smoothing:
            return given
        with self.timed("smooth"):
            samples = self._read(evenly(calibrated)[: _SMOOTHED_FROM // (2 if is_large(self.model) else 1)])
            found = strengths(given.model, whole, given.plan, given.evidence, samples, self.settings)
            made = smoothed(given.model, whole, given.plan, given.evidence.stats, samples, self.settings)
            changed = sum(strength != STRENGTH for strength in found.values())
            if made is None and ((changed < _FEWEST_STRENGTHS and self.recipe.smooth is None) or not found):
                return given
            model, evidence, lead = given.model, replace(given.evidence, strengths=found), 0.0
            if made is not None:
                model, known = made
                evidence, lead = Evidence(self._observed(model, known), strengths=found), _SMOOTHING_GAIN_DB
            plan = self._planned(model, self.recipe, evidence)
            other = replace(given, model=model, plan=plan, evidence=evidence, clips=True, lead=lead, smoothed=True)
            others = [other]
            if not given.clips:  # clipping may have been worse only because of the outliers, so try both
                plain = self._planned(model, replace(self.recipe, clip=False), evidence)
                others.append(replace(other, plan=plain, clips=False))
            if self.recipe.smooth is None:
                others.append(replace(given, lead=0.0))
            return self._choose(others, self._glances())[0] if len(others) > 1 else other

    def _observed(self, model: Model, known: Mapping[str, TensorStats]) -> Mapping[str, TensorStats]:
        """Statistics of a changed model, observed on all samples that were calibrated on.

        Args:
            model: the changed model.
            known: statistics of the tensors that the change left as they were; they are not observed again.
        """
        plan = make_plan(model, self.target, self.recipe)
        calibrated = self.data.subset(self.gathered.calibrated)
        found = from_data(model, plan, self.recipe, calibrated, self.settings, 0.0, settle=False, known=known)
        self.inferences += found.inferences
        return {**known, **found.statistics.tensors}

    def _glances(self) -> Iterator[list[int]]:
        """Batches to choose on. Of a large model the first one is looked at in halves: the first half often decides."""
        for number, batch in enumerate(self._batches(self._samples.choosing)):
            middle = len(batch) // 2 if is_large(self.model) and number == 0 else 0
            yield from (part for part in (batch[:middle], batch[middle:]) if part)

    def _batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """The first of these numbers in batches."""
        start = 0
        for size in _BATCHES:
            if start < len(numbers):
                yield list(numbers[start : start + size])
            start += size

    def _read(self, numbers: Sequence[int]) -> list[Sample]:
        return list(in_order(self.data.__getitem__, numbers, self.settings.threads))
