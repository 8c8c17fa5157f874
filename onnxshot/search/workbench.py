"""A calibrated model on which many recipes are built and measured, without calibrating again for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, Sample, split
from onnxshot.calibration.sample_parts import evenly
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.record import stamp
from onnxshot.errors import UsageError
from onnxshot.execution.candidate_race import Judge, candidate_of
from onnxshot.graph import Model, weights
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import by_label
from onnxshot.graph.ops import op_of
from onnxshot.planning.block_schemes import bits_of
from onnxshot.planning.finite_weights import refuse_not_finite
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import FLOAT, STATIC, WEIGHTS, NodePlan, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.group_search import Forms
from onnxshot.recovery.plan_trials import PlanTrials
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.runtimes.ort_kernel_times import kernel_times, timed_in_parts
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.runtimes.parallel import in_order
from onnxshot.settings import Settings
from onnxshot.stages.check_normalized import check_normalized
from onnxshot.stages.improve_plan import FinalPlan, improve_plan
from onnxshot.stages.observe import observe
from onnxshot.stages.open_samples import open_samples
from onnxshot.stages.prepare_model import Prepared, prepare_model
from onnxshot.stages.settle_forms import settle_forms
from onnxshot.verification.reference import Reference

TRIED = 8
"""Number of calibration samples that candidates are measured on, evenly spaced."""

MOST_TRIED = 32
"""The same for bits of weights in blocks; fewer are used of outputs with many rows."""

STORED = "stored"

_FUSED = ("Relu", "Clip")  # fused into the node before them, and so without a precision of their own


@dataclass(frozen=True, slots=True)
class Unit:
    """A node with a precision of its own.

    Attributes:
        planned: what the full plan does with it.
        pattern: a glob that matches this node and no other.
        made: name of its first output.
        macs_share: its share, 0 to 1, of the model's multiply-accumulates in a run on the first sample.
        weight_bytes: size of its weight in float.
        weighted: whether it has a weight in 8 bits, to compute with or only to store.
        forced: whether it is int8 because the recipe includes it by name.
    """

    planned: NodePlan
    pattern: str
    made: str
    macs_share: float
    weight_bytes: int = 0
    weighted: bool = False
    forced: bool = False

    @property
    def how(self) -> str:
        """'static', 'dynamic' or 'weights'; 'stored' where it computes in float and only its weight is in 8 bits."""
        return STORED if self.planned.how == FLOAT else self.planned.how


@dataclass(frozen=True, slots=True)
class Workbench:
    """A prepared model with its samples and statistics, on which other recipes are built and measured.

    Attributes:
        prepared: the float model that all plans are for; what was asked for.
        reference: the given model, which outputs are compared with.
        final: the plan of everything that the recipe quantizes, and what it was made from.
        units: the nodes that can be put back to float one by one, in graph order: quantized nodes, and those with a
            weight that is stored in 8 bits.
        samples: calibration samples that candidates are measured on.
        judge: compares candidates with the reference on them.
        held_out: samples that calibration did not see; all samples where it saw none.
        notes: what a user should know.
    """

    prepared: Prepared
    reference: Reference
    final: FinalPlan
    units: tuple[Unit, ...]
    samples: tuple[Sample, ...]
    judge: Judge
    held_out: Dataset
    notes: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """Everything that `recipe` quantizes."""
        return self.final.plan

    @property
    def recipe(self) -> Recipe:
        """The recipe that was asked for, with what the trials found."""
        return self.final.decided

    def plan_of(self, recipe: Recipe) -> Plan:
        """Plan another recipe for the same model, with scales from the same statistics."""
        return self.prepared.plan(recipe, self.final.evidence)

    def without(self, patterns: Iterable[str]) -> Recipe:
        """The recipe with these patterns in float too."""
        return replace(self.recipe, exclude=(*self.recipe.exclude, *patterns))

    def alone(self, unit: Unit, *, per_channel: bool) -> Plan | None:
        """Plan this node in 8 bits and all other nodes with a weight in float; None if that changes its own mode.

        Nodes without a weight follow the planner's rules: they are quantized where this node needs them to be.
        """
        others = (u.pattern for u in self.units if u is not unit and u.weighted)
        # A node may be static only because its neighbours are int8. Without them it must be included by name.
        include = (unit.pattern,) if unit.forced or unit.planned.how == STATIC else ()
        plan = self.plan_of(replace(self.without(others), include=include, per_channel=per_channel))
        there = plan.stored if unit.how == STORED else plan.labels(unit.how)
        return plan if unit.planned.node in there else None

    def trials(self, whole: Callable[[Forms], float], each: Callable[[], None]) -> PlanTrials:
        """Measures groups of nodes in other forms. whole: measures a mix. each: called before each model is made."""
        prepared, samples = self.prepared, self.samples
        evidence = Evidence({}) if self.final.evidence is None else self.final.evidence
        return PlanTrials(
            prepared.model, prepared.target, self.recipe, self.plan, evidence, prepared.trained, self.judge,
            range(len(samples)), [sample.feed for sample in samples], prepared.settings.threads, whole=whole, each=each,
        )  # fmt: skip

    def sqnrs(self, plans: Iterable[Plan]) -> Iterator[float]:
        """Yield the SQNR in dB over `samples` for each plan, each output relative to its own scale.

        The reference is run once for all plans.
        """
        made = (candidate_of(self._rewritten(plan)) for plan in plans)
        return (one.balanced_db for one in self.judge.measure(made, range(len(self.samples))))

    @property
    def timing_note(self) -> str:
        """How `latencies` are measured, where that is not in the whole model; else empty."""
        if not timed_in_parts(LeanModel.of(self.prepared.model)):
            return ""
        return "nodes were timed in parts of the model, one after the other: the whole is over its share of the memory"

    def latencies(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of each unit in ONNX Runtime, by pattern: in the float model and in the quantized one.

        A unit that ONNX Runtime fuses into another one's kernel has 0.
        """
        made = self._rewritten(self.plan)
        finish(made, self.prepared.target, self.recipe)
        both = [LeanModel.of(self.prepared.model), LeanModel.of(made)]
        parts, feeds = {u.planned.node: u.made for u in self.units}, [sample.feed for sample in self.samples]
        before, after = kernel_times(both, parts, feeds, threads=self.prepared.settings.threads)
        return {u.pattern: (before[u.planned.node], after[u.planned.node]) for u in self.units}

    def build(self, recipe: Recipe) -> Model:
        """Make the model of a recipe, repaired and stamped with its record."""
        plan = self.plan_of(recipe)
        made = self._rewritten(plan)
        self.final.repair(LeanModel.of(self.prepared.model), made, plan)
        finish(made, self.prepared.target, recipe)
        stamp(made, self.prepared.record(recipe, plan, sampled=True))
        return made

    def _rewritten(self, plan: Plan) -> Model:
        made = copy_of(self.prepared.model)
        apply_plan(made, plan, self.prepared.recipe)
        return made


@contextlib.contextmanager
def workbench(
    model: str | Path | ModelProto,
    calib: Any,
    *,
    stats: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    recipe: Recipe,
    settings: Settings,
) -> Iterator[Workbench]:
    """Prepare and calibrate a model as `quantize` does. The data is closed at the end of the `with` block.

    Raises:
        UsageError: there is no data, the recipe is not for int8, or the model is too large; and what `quantize` raises.
    """
    if calib is None:
        raise UsageError("there is no data to measure on", "give [[calib=DATA]]")
    if recipe.precision != "int8":
        raise UsageError(f"precision is {recipe.precision!r}", "goals and sensitivity are about int8: leave it out")
    prepared = prepare_model(model, recipe, settings)
    with open_samples(prepared, calib, preset, stats) as given:
        data = given.data
        assert data is not None
        prepared, forms = settle_forms(prepared, data)
        reference = check_normalized(prepared, data)
        if reference is None:
            raise UsageError("the model is too large to measure in memory", "give the path of its file")
        plan = prepared.plan()
        refuse_not_finite(prepared.model, plan)
        gathered = observe(prepared, plan, given)
        alone = replace(prepared, recipe=replace(prepared.recipe, look=False))  # decided here
        final = improve_plan(alone, plan, gathered, given, reference)
        calibrated, held_out = split(len(data))
        count = MOST_TRIED
        if bits_of(prepared.recipe) is None:
            held_out, count = list(range(len(data))), TRIED  # nothing is learned or chosen from samples
        if gathered is not None:
            calibrated, held_out = gathered.calibrated, gathered.held_out or held_out
        elif recipe.effort != "fast" and any(plan.weights[label].in_blocks for label in plan.labels(WEIGHTS)):
            held_out = split(len(data))[1]  # the result's weights are rounded with the others
        tried = (final.improver.choosing if final.improver is not None else evenly(calibrated))[:count]
        samples = tuple(in_order(data.__getitem__, tried, settings.threads))
        units = _units(final.prepared.model, final.plan, final.decided, samples[0])
        notes = [*prepared.notes, *given.notes, *forms, reference.note, *(gathered.notes if gathered else ())]
        notes += final.notes
        known = tuple(note for note in notes if note)
        judge = Judge(reference.model, samples, settings.threads)
        yield Workbench(final.prepared, reference, final, units, samples, judge, data.subset(held_out), known)


def _units(model: Model, plan: Plan, recipe: Recipe, sample: Sample) -> tuple[Unit, ...]:
    patterns = exact_patterns(model)
    forced = {node.label for node in NodeRecipes(model, recipe).forced}
    work = by_label(sizes_on(model, sample.feed).work(model))
    total = sum(work.values()) or 1
    node_of = {node.label: node for _, node in model.walk()}
    units = []
    for planned in plan.nodes:
        node = node_of[planned.node]
        weight, stored = plan.weights.get(planned.node), plan.stored.get(planned.node, ())
        slots = [one.slot for one in stored] if weight is None else [weight.slot]
        computes = planned.how != FLOAT and not (node.op in _FUSED or op_of(node).keeps_range)
        if not (slots or computes) or planned.node not in patterns:
            continue
        size = sum(weights.size_bytes(node.inputs[slot]) for slot in slots)
        share = work.get(planned.node, 0) / total
        made, pattern = node_of[planned.node].outputs[0].name, patterns[planned.node]
        units.append(Unit(planned, pattern, made, share, size, bool(slots), planned.node in forced))
    return tuple(units)
