"""Take quantized nodes that are slower in int8 than in float on this machine back to float, before scales are improved.

The float model and the model as planned are profiled once, on one sample. From the times of their kernels follows which
nodes to take back (planning/faster_in_float.py). Then the model as planned, the one without these nodes, and the one
with every node in float are run in turns. The one with fewer nodes in int8 is taken unless more of them are clearly
faster: int8 that brings no speed only costs accuracy. Weights stay stored in 8 bits.

What was decided is written into the recipe, so that a replay needs no timing, and kept in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.execution import placement_cache
from onnxshot.execution.placement_cache import Decision
from onnxshot.execution.statistics_source import RunStatistics
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.planning.faster_in_float import faster_in_float
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, STATIC, STORED, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.runtimes.interleaved_timing import time_interleaved
from onnxshot.runtimes.ort_border_times import border_times
from onnxshot.runtimes.ort_kernels import kernels_of
from onnxshot.runtimes.ort_runtime import Feed, is_large
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared, prepare_model

_WORTH = 1.03  # times as fast: int8 that is not, is not worth its error
_SHORTEST_US = 150.0  # shorter models are mostly overhead of calls
_ROUNDS = (3, 10)  # of a profile, at least and at most
_MOST_ROUNDS = 100
_SECONDS = 0.08  # of each model that is profiled or timed
_QUANTILE = 0.2
_FEEDS = 2
_NOT_TIMED = ("effort", "equalize", "look")  # fields of a recipe that change no time


@dataclass(frozen=True, slots=True)
class Placed:
    """What was decided.

    Attributes:
        prepared: the model, with the recipe to go on with. Where nodes go to float, it is prepared from the start, as
            in a replay: normalizing depends on what is quantized.
        row: what was found, as the report tells it; empty where nothing changed.
        times: what was measured; None where nothing was.
    """

    prepared: Prepared
    row: Mapping[str, Any] = field(default_factory=dict)
    times: Decision | None = None

    @property
    def notes(self) -> list[str]:
        """What was found, in words."""
        if not self.row:
            return []
        count, every, gain = (self.row[name] for name in ("floats", "of", "gain"))
        which = f"all {every} nodes" if count == every else f"{count} of {every} nodes"
        how = f"{gain:.2f}x as fast as in int8" if gain > 1 else "int8 is no faster there"
        return [f"{which} to quantize compute in float, with weights in 8 bits, as measured on this machine: {how}"]


def place_by_time(
    prepared: Prepared, plan: Plan, gathered: RunStatistics | None, samples: Samples, evidence: Evidence
) -> Placed:
    """Decide which quantized nodes go back to float, as they are not faster in int8.

    Args:
        prepared: the normalized model.
        plan: its plan, without scales.
        gathered: statistics of the tensors that the plan observes.
        samples: one of them is run.
        evidence: of those statistics; it keeps the ranges that are chosen here.
    """
    if not _wanted(prepared, plan, gathered, samples) or gathered is None or samples.data is None:
        return Placed(prepared)
    recipe, threads = prepared.recipe, prepared.settings.threads
    settled = replace(prepared, recipe=replace(recipe, place=False))  # a replay times nothing
    quantized = [n.node for n in plan.nodes if n.how in (STATIC, DYNAMIC)]
    name, found = "", None
    if gathered.key:
        asked = {field: value for field, value in recipe.to_dict().items() if field not in _NOT_TIMED}
        name = placement_cache.key(gathered.key, json.dumps(asked, sort_keys=True), str(threads))
        found = placement_cache.load(name, quantized)
    forms = _Forms(prepared, evidence)
    if found is None:
        feeds = [samples.data[number].feed for number in gathered.calibrated[:_FEEDS]]
        try:
            found = _fastest(forms, feeds, threads)
        except OnnxshotError:  # a form does not load or run here; the proof says so of the result
            return Placed(settled)
        if name:
            placement_cache.store(name, found)
    if not found.floats:
        return Placed(settled, times=found)
    row = {
        "floats": len(found.floats), "of": len(quantized), "float_us": found.in_float, "int8_us": found.in_int8,
        "gain": found.gain,
    }  # fmt: skip
    prepared.model.check_files()  # it is read again
    try:
        again = prepare_model(prepared.source, replace(forms.recipe(found.floats), place=False), prepared.settings)
        again.plan()
    except UsageError:  # a node has another name where fewer nodes are quantized
        return Placed(settled)
    return Placed(again, row, found)


def _wanted(prepared: Prepared, plan: Plan, gathered: RunStatistics | None, samples: Samples) -> bool:
    """Whether the machine is the target, the recipe leaves it open, and there is something to decide."""
    recipe, target = prepared.recipe, prepared.target
    open_ = recipe.place or (recipe.place is None and recipe.effort != "fast" and not samples.trial)
    fits = recipe.mode == STATIC and recipe.precision == "int8" and target.runs_here and not target.everywhere
    fits = fits and not prepared.trained and not prepared.keeps_half and target.stores_weights
    known = gathered is not None and bool(gathered.calibrated) and samples.data is not None
    return open_ and fits and known and any(n.how in (STATIC, DYNAMIC) for n in plan.nodes) and not _large(prepared)


def _large(prepared: Prepared) -> bool:
    return is_large(LeanModel.of(prepared.model))


class _Forms:
    """Makes forms of one model."""

    def __init__(self, prepared: Prepared, evidence: Evidence) -> None:
        self.prepared, self._evidence = prepared, evidence
        self._patterns = exact_patterns(prepared.model)

    def recipe(self, floats: Iterable[str]) -> Recipe:
        """The recipe with these nodes in float."""
        rules = {self._patterns[label]: {"mode": STORED} for label in floats if label in self._patterns}
        return replace(self.prepared.recipe, layers={**self.prepared.recipe.layers, **rules})

    def form(self, floats: Iterable[str]) -> tuple[Plan, Model]:
        """The plan with these nodes in float, and the model by it, without repairs."""
        prepared, recipe = self.prepared, self.recipe(floats)
        plan, model = prepared.plan(recipe, self._evidence), copy_of(prepared.model)
        apply_plan(model, plan, recipe)
        finish(model, prepared.target, recipe)
        return plan, model

    def forced(self) -> set[str]:
        """Labels of the nodes whose mode the user has asked for."""
        asked = NodeRecipes(self.prepared.model, self.prepared.recipe)
        return {node.label for node in (*asked.forced, *asked.excluded)}


def _fastest(forms: _Forms, feeds: Sequence[Feed], threads: int) -> Decision:
    """Which nodes go back to float."""
    model = forms.prepared.model
    plan, planned = forms.form(())
    both = [LeanModel.of(model), LeanModel.of(planned)]
    in_float, in_int8 = kernels_of(both, feeds[0], threads=threads, rounds=_ROUNDS, seconds=_SECONDS)
    if not in_float or not in_int8:
        return Decision()
    forced = forms.forced()
    found = faster_in_float(model, plan, in_float, in_int8, border_times(threads), forced)
    same = Decision((), found.all_float, found.planned, saved=found.saved)
    if found.planned < _SHORTEST_US:
        return same
    tried: list[tuple[str, ...]] = [()]
    if found.floats and found.placed * _WORTH < found.planned:
        tried.append(found.floats)
    quantized = tuple(n.node for n in plan.nodes if n.how in (STATIC, DYNAMIC))
    if found.all_float < min(found.placed, found.planned) and forced.isdisjoint(quantized):
        tried.append(quantized)
    if len(tried) == 1:
        return same
    times = _timed([planned, *(forms.form(floats)[1] for floats in tried[1:])], feeds, threads)
    best = 0
    for i in range(1, len(tried)):  # each has fewer nodes in int8 than the one before
        best = best if _gain(times, best, i) >= _WORTH else i
    return replace(same, floats=tried[best], gain=_gain(times, best, 0))


def _timed(models: Sequence[Model], feeds: Sequence[Feed], threads: int) -> list[NDArray[np.float64]]:
    """Wall and CPU time of models in turns, each [rounds, models] milliseconds."""
    runs = [SessionRunner(LeanModel.of(m).to_proto().SerializeToString(), threads=threads).run for m in models]
    cpu: list[list[float]] = []
    wall = time_interleaved(runs, feeds, _MOST_ROUNDS, _SECONDS, cpu=cpu)
    return [np.array(wall), np.array(cpu)]


def _gain(times: Sequence[NDArray[np.float64]], one: int, other: int) -> float:
    """How many times as fast one model is as another: the mean of what wall time and CPU time say.

    Other load on the machine only ever adds to a time: low quantiles are compared.
    """
    low = [np.quantile(ms, _QUANTILE, axis=0) for ms in times if (ms > 0).all()]  # a clock may be coarse
    return float(np.prod([ms[other] / ms[one] for ms in low]) ** (1 / max(len(low), 1)))
