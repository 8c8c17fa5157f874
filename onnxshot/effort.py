"""What more effort does for accuracy: candidates and repairs, each kept only where the network's outputs are better.

fast      ranges only
balanced  + cross-layer equalization, + bias correction
best      + ranges, and rounding of the weights, by what they do to the outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.graph import Model, edit
from onnxshot.graph.load import load_model
from onnxshot.passes.equalize import Equalize
from onnxshot.passes.repair import ApplyRepairs
from onnxshot.plan import STATIC, Plan
from onnxshot.reconstruct import Repair, reconstruct
from onnxshot.scales import Evidence
from onnxshot.settings import Settings
from onnxshot.trial import sqnrs

_CHECKED = 4  # every so many-th calibration sample is left out of a repair, to see whether it helps
_MOST_CHECKED = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float model with a plan for it, and what is known of its tensors.

    clips: whether ranges may be smaller than the extremes; lead: how many dB it must be better by.
    """

    model: Model
    plan: Plan
    evidence: Evidence
    clips: bool = True
    lead: float = 0.0


def split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """(samples to learn from, samples left out to see whether it helps)."""
    learn = [sample for i, sample in enumerate(samples) if i % _CHECKED != _CHECKED - 1]
    return learn, list(samples[_CHECKED - 1 :: _CHECKED][:_MOST_CHECKED])


def equalized(model: Model, plan: Plan, stats: Mapping[str, TensorStats]) -> Model | None:
    """A copy of the model with equalized channels; None where there is nothing to gain."""
    if not any(n.how == STATIC and n.has_weight for n in plan.nodes):
        return None
    copy = load_model(model.to_proto())
    copy.path, copy.notes = model.path, list(model.notes)
    return copy if Equalize(plan, stats).run(copy).edits else None


def choose(
    reference: ModelProto,
    candidates: Sequence[Candidate],
    rewrite: Callable[[Model, Plan], object],
    samples: Sequence[Sample],
    *,
    threads: int,
) -> Candidate:
    """The candidate that comes closest to the reference once `rewrite` has quantized a copy of it."""
    made = (_rewritten(c.model, c.plan, rewrite) for c in candidates)
    found = list(sqnrs(reference.SerializeToString(), made, samples, threads=threads))
    return max(zip(found, candidates, strict=True), key=lambda pair: pair[0] - pair[1].lead)[1]


def _rewritten(model: Model, plan: Plan, rewrite: Callable[[Model, Plan], object]) -> bytes:
    copy = load_model(model.to_proto())
    rewrite(copy, plan)
    return bytes(copy.to_proto().SerializeToString())


def repaired(
    reference: ModelProto, model: Model, plan: Plan, samples: Sequence[Sample], effort: str, settings: Settings
) -> str:
    """Repair a quantized model where that helps on samples it was not learned from; what was done, in words.

    reference: the float model that the plan was made for. Raises ModelError where a model does not run.
    """
    learn, check = split(samples)
    layers = [n.node for n in plan.nodes if n.how == STATIC and n.has_weight and n.node not in plan.kept.nodes]
    if not layers or not check:
        return ""
    proto = model.to_proto()
    ways = {"biases were corrected": False} | ({"weights were rounded anew": True} if effort == "best" else {})
    found: dict[str, dict[str, Repair]] = {}

    def candidates() -> Iterator[bytes]:
        yield bytes(proto.SerializeToString())
        for name, rounding in ways.items():
            found[name] = reconstruct(
                reference, proto, layers, [sample.feed for sample in learn], rounding=rounding,
                threads=settings.threads, progress=settings.progress,
            )  # fmt: skip
            copy = load_model(proto)
            ApplyRepairs(found[name]).run(copy)
            yield bytes(copy.to_proto().SerializeToString())

    before, *after = sqnrs(reference.SerializeToString(), candidates(), check, threads=settings.threads)
    best = max(range(len(after)), key=after.__getitem__)
    name = list(ways)[best]
    if after[best] <= before:
        return f"no repair was kept: {before:.1f} dB before, {after[best]:.1f} dB after, on samples left out of it"
    ApplyRepairs(found[name]).run(model)
    edit.remove_unused(model)
    return f"{name}: {before:.1f} dB before, {after[best]:.1f} dB after, on {len(check)} samples left out of it"
