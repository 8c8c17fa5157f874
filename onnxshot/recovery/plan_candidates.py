"""Candidates and repairs of a plan, each kept only where it brings the network's outputs closer to the reference.

What each effort tries:

fast      clipped or unclipped ranges
balanced  + cross-layer equalization, SmoothQuant, inputs on the grid of their samples, bias correction
best      + ranges of the loudest tensors chosen by the error of the outputs, layer-wise reconstruction of weights
          (learned rounding), each step compared with the result of "balanced"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.execution.candidate_race import CandidateError, Judge, candidate_of
from onnxshot.graph import Model, edit
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.equalize import Equalize
from onnxshot.planning.plan import STATIC, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recovery.layer_reconstruction import Repair, reconstruct
from onnxshot.runtimes.ort_runtime import Runnable
from onnxshot.settings import Settings
from onnxshot.wording import counted


@dataclass(frozen=True, slots=True)
class Repairs:
    """What is changed in a quantized model after it was written by its plan.

    Attributes:
        found: name of the layer -> its repair.
        said: what was done, in words; empty where nothing was tried.
    """

    found: Mapping[str, Repair] = field(default_factory=dict)
    said: str = ""

    def apply(self, model: Model) -> None:
        """Change the quantized model in place."""
        if self.found:
            ApplyRepairs(self.found).run(model)
            edit.remove_unused(model)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float model with a plan.

    Attributes:
        model: the float model.
        plan: its plan, with scales.
        evidence: what the scales were chosen from.
        clips: whether ranges may be smaller than the extremes of the tensor.
        lead: by how many dB it must be better than the others to be chosen.
        gridded: whether inputs were put on the grid of their samples.
        equalized: whether channels were equalized.
        smoothed: whether outliers were moved into weights.
        refined: whether ranges were chosen by the error of the outputs.
        layers: rules of `layers` that trials added to the recipe's.
        left_out: what was not tried for lack of memory, in words.
    repairs: what is changed once the model was quantized by the plan; None where that is not known yet.
    """

    model: Model
    plan: Plan
    evidence: Evidence
    clips: bool = True
    lead: float = 0.0
    gridded: bool = False
    equalized: bool = False
    smoothed: bool = False
    refined: bool = False
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: str = ""
    repairs: Repairs | None = None

    def notes(self) -> Iterator[str]:
        """Say in words what was done to the model and its ranges."""
        if not self.clips:
            yield "no range is clipped: on calibration samples the outputs were more accurate without clipping"
        if self.refined:
            yield "ranges of the tensors that cause most of the error were chosen by the error of the outputs"
        if self.left_out:
            yield self.left_out
        if self.gridded:
            yield "inputs are quantized on the grid of values that their samples lie on, without error"
        if self.equalized:
            yield "channels were equalized"
        if self.smoothed:
            yield "outliers of activations were moved into the weights of products that gain accuracy by it"


def equalized(
    model: Model, plan: Plan, stats: Mapping[str, TensorStats]
) -> tuple[Model, dict[str, NDArray[np.float32]]] | None:
    """Copy a model and equalize its channels.

    Returns:
        The copy, and the tensors that changed, by name -> factor of each channel (axis 1); None where there is nothing
        to equalize.
    """
    if not any(n.how == STATIC and n.has_weight for n in plan.nodes):
        return None
    copy, change = copy_of(model), Equalize(plan, stats)
    if not change.run(copy).edits:
        return None
    return copy, change.scaled


def choose(
    judge: Judge,
    candidates: Sequence[Candidate],
    rewrite: Callable[[Model, Plan], object],
    batches: Iterable[Sequence[int]],
) -> tuple[Candidate, CandidateError | None]:
    """Choose the candidate whose quantized model comes closest to the reference.

    Args:
        judge: compares models with the reference.
        candidates: the float models and their plans.
        rewrite: quantizes a model in place by a plan.
        batches: numbers of samples to compare on; later batches are read only where earlier ones are not decisive.

    Returns:
        The candidate and its error; the first candidate and None where there are no samples.
    """
    made = (_rewritten(c.model, c.plan, rewrite) for c in candidates)
    best, found = judge.race(made, batches, [c.lead for c in candidates])
    return candidates[best], found[best] if found else None


def _rewritten(model: Model, plan: Plan, rewrite: Callable[[Model, Plan], object]) -> Runnable:
    copy = copy_of(model)
    rewrite(copy, plan)
    return candidate_of(copy)


def learned(
    teacher: LeanModel, model: Model, plan: Plan, learn: Sequence[Sample], settings: Settings, *, rounding: bool
) -> dict[str, Repair]:
    """Learn corrected biases of the static layers, and with `rounding` their weights, too.

    Args:
        teacher: the float model that the plan was made for, which layers learn from.
        model: the quantized model; it is not changed.
        plan: what it was quantized by.
        learn: samples to learn from.
        settings: threads, and the progress callback.
        rounding: whether weights are rounded again.

    Returns:
        Name of the layer -> its repair; empty where there is nothing to repair.

    Raises:
        ModelError: a model does not run.
    """
    layers = [n.node for n in plan.nodes if n.how == STATIC and n.has_weight and n.node not in plan.kept.nodes]
    if not layers or not learn:
        return {}
    return reconstruct(
        teacher, LeanModel.of(candidate_of(model)), layers, [sample.feed for sample in learn], rounding=rounding,
        threads=settings.threads, progress=settings.progress,
    )  # fmt: skip


def with_repairs(model: Model, found: Mapping[str, Repair]) -> Runnable:
    """The quantized model with these repairs, to be measured."""
    copy = copy_of(model)
    ApplyRepairs(found).run(copy)
    return candidate_of(copy)


def repaired(
    judge: Judge,
    teacher: LeanModel,
    model: Model,
    plan: Plan,
    learn: Sequence[Sample],
    checks: Iterable[Sequence[int]],
    settings: Settings,
) -> Repairs:
    """Correct biases, if that helps on other samples.

    Args:
        judge: compares models with the given one.
        teacher: the float model that the plan was made for, which layers learn from.
        model: the quantized model; it is not changed.
        plan: what it was quantized by.
        learn: samples to learn from.
        checks: numbers of other samples, in batches, that decide whether the repair is kept.
        settings: threads, and the progress callback.

    Raises:
        ModelError: a model does not run.
    """
    found: list[dict[str, Repair]] = []

    def candidates() -> Iterator[Runnable]:
        yield candidate_of(model)
        found.append(learned(teacher, model, plan, learn, settings, rounding=False))
        yield with_repairs(model, found[0])

    if not learn or not any(n.how == STATIC and n.has_weight and n.node not in plan.kept.nodes for n in plan.nodes):
        return Repairs()
    best, judged = judge.race(candidates(), checks)
    if not judged:
        return Repairs()
    seen = f"{counted(len(judged[1].each_db), 'sample')} kept to decide"
    if best == 0:
        return Repairs({}, f"no repair was kept: {_figures(*(one.typical_db for one in judged))}, on {seen}")
    before, after = _together(*judged)
    if after < before:
        return Repairs({}, f"no repair was kept: {_figures(before, after)}, over {seen}, all together")
    return Repairs(found[0], f"biases were corrected: {_figures(*(one.typical_db for one in judged))}, on {seen}")


def _figures(before: float, after: float) -> str:
    return f"{before:.1f} dB before, {after:.1f} dB after"


def _together(one: CandidateError, other: CandidateError) -> tuple[float, float]:
    """SQNR in dB over all samples that both were measured on, each output relative to its own scale.

    A repair must help the worst of them too.
    """
    count = min(len(one.samples), len(other.samples))
    first, second = (CandidateError(found.samples[:count]).balanced_db for found in (one, other))
    return first, second
