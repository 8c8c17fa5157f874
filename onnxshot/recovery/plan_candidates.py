"""What more effort does for accuracy: candidates and repairs, each kept only where the network's outputs are better.

fast      ranges only
balanced  + cross-layer equalization, + outliers of products moved into weights, + inputs on their own grid,
          + bias correction
best      + ranges, and rounding of the weights, by what they do to the outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.execution.candidate_race import CandidateError, race
from onnxshot.graph import Model, edit
from onnxshot.graph.load import copy_of, load_model
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.equalize import Equalize
from onnxshot.planning.plan import STATIC, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recovery.layer_reconstruction import Repair, reconstruct
from onnxshot.settings import Settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float model with a plan for it, and what is known of its tensors.

    clips: whether ranges may be smaller than the extremes; lead: how many dB it must be better by; gridded,
    equalized, smoothed: what was done to the model.
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

    def notes(self) -> Iterator[str]:
        """Say in words what was done to the model and its ranges."""
        if not self.clips:
            yield "no range is clipped: on calibration samples the outputs were better so"
        if self.refined:
            yield "ranges of the loudest tensors were then chosen by what they do to the outputs"
        if self.gridded:
            yield "inputs were put on the grid of their samples: quantizing them costs nothing"
        if self.equalized:
            yield "channels were equalized"
        if self.smoothed:
            yield "outliers were moved into the weights of products, as far as each gains by it"


def equalized(
    model: Model, plan: Plan, stats: Mapping[str, TensorStats]
) -> tuple[Model, dict[str, TensorStats]] | None:
    """A copy of the model with equalized channels, and statistics of the tensors that it is the same in.

    None where there is nothing to gain.
    """
    if not any(n.how == STATIC and n.has_weight for n in plan.nodes):
        return None
    copy, change = copy_of(model), Equalize(plan, stats)
    if not change.run(copy).edits:
        return None
    return copy, {name: known for name, known in stats.items() if name not in change.scaled}


def choose(
    reference: Path | bytes,
    candidates: Sequence[Candidate],
    rewrite: Callable[[Model, Plan], object],
    batches: Iterable[Sequence[Sample]],
    *,
    threads: int,
) -> tuple[Candidate, CandidateError | None]:
    """The candidate that comes closest to the reference once `rewrite` has quantized a copy of it, and how close.

    Without any samples, the first.
    """
    made = (_rewritten(c.model, c.plan, rewrite) for c in candidates)
    leads = [c.lead for c in candidates]
    best, found = race(reference, made, batches, threads=threads, leads=leads)
    return candidates[best], found[best] if found else None


def _rewritten(model: Model, plan: Plan, rewrite: Callable[[Model, Plan], object]) -> bytes:
    copy = load_model(model.to_proto())
    rewrite(copy, plan)
    return bytes(copy.to_proto().SerializeToString())


def repaired(
    reference: Path | bytes,
    teacher: ModelProto,
    model: Model,
    plan: Plan,
    learn: Sequence[Sample],
    checks: Iterable[Sequence[Sample]],
    effort: str,
    settings: Settings,
) -> str:
    """Repair a quantized model where that helps on samples it was not learned from; what was done, in words.

    reference: the model that was given; teacher: the float model that the plan was made for; checks: batches of those
    other samples. Raises ModelError where a model does not run.
    """
    layers = [n.node for n in plan.nodes if n.how == STATIC and n.has_weight and n.node not in plan.kept.nodes]
    if not layers or not learn:
        return ""
    proto = model.to_proto()
    ways = {"biases were corrected": False} | ({"weights were rounded anew": True} if effort == "best" else {})
    found: dict[str, dict[str, Repair]] = {}

    def candidates() -> Iterator[bytes]:
        yield bytes(proto.SerializeToString())
        for name, rounding in ways.items():
            found[name] = reconstruct(
                teacher, proto, layers, [sample.feed for sample in learn], rounding=rounding,
                threads=settings.threads, progress=settings.progress,
            )  # fmt: skip
            copy = load_model(proto)
            ApplyRepairs(found[name]).run(copy)
            yield bytes(copy.to_proto().SerializeToString())

    best, judged = race(reference, candidates(), checks, threads=settings.threads)
    if not judged:
        return ""
    most, *others = (one.typical_db for one in judged)
    seen = f"{len(judged[best].each_db)} samples left out of it"
    if best == 0:
        return f"no repair was kept: {most:.1f} dB before, {max(others):.1f} dB after, on {seen}"
    name = list(ways)[best - 1]
    ApplyRepairs(found[name]).run(model)
    edit.remove_unused(model)
    return f"{name}: {most:.1f} dB before, {others[best - 1]:.1f} dB after, on {seen}"
