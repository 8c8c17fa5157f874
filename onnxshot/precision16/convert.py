"""Put what a run has left in float32 into 16 bits: look at ranges, plan, rewrite."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx import TensorProto

from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sampling import spread
from onnxshot.calibration.stats import Span
from onnxshot.errors import TargetError
from onnxshot.execution import candidate_race
from onnxshot.execution.collect import extremes
from onnxshot.graph import Model, shape_inference
from onnxshot.passes.to_precision16 import ToPrecision16
from onnxshot.planning.name_patterns import match_nodes
from onnxshot.planning.plan import FLOAT, HALF, NodePlan, Plan
from onnxshot.planning.precision16_ops import HALVES, HalfType
from onnxshot.planning.precision16_plan import READS_QUANTIZED, HalfPlan, plan_half
from onnxshot.precision16.rounding_noise import rounding_db
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings
from onnxshot.targets.base import Target

_MOST_SAMPLES = 128  # where nobody says how many: extremes alone are looked for
_NOISE_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Halved:
    """The plan with the nodes that are in 16 bits now; how many samples were looked at, and what a user should know."""

    plan: Plan
    samples: int
    notes: tuple[str, ...]


def refuse_half(target: Target, recipe: Recipe) -> None:
    """Raise TargetError where the target does not run the floats that the recipe asks for."""
    reason = target.refused.get(recipe.half or "")
    if reason:
        raise TargetError(f"--precision {recipe.precision}: {reason}", "use --precision int8 or fp16")


def halve(
    model: Model, plan: Plan, target: Target, recipe: Recipe, data: Dataset | None, settings: Settings
) -> Halved:
    """Put all nodes of a rewritten model that may be into the recipe's floats of 16 bits."""
    kind = HALVES[recipe.half or ""]
    found, seen = _planned(model, kind, {} if recipe.quantizes else _excluded(model, recipe), data, settings)
    ToPrecision16(found).run(model)
    joined = _joined(plan.nodes, {n.node: n for n in found.nodes}) if recipe.quantizes else found.nodes
    notes = [target.half_note] if target.half_note else []
    if data is None and kind.largest is not None:
        notes.append(f"no data: {kind.name} where operators and weights allow it, whatever values flow; give --calib")
    if not found.chosen:
        notes.append(f"nothing was put into {kind.name}: the skips say why, node by node")
    return Halved(replace(plan, nodes=joined), seen, tuple(notes))


def foresee_half(
    model: Model, plan: Plan, target: Target, recipe: Recipe, data: Dataset | None, settings: Settings
) -> Plan:
    """The plan of a normalized model with what `halve` would do to it once it is rewritten; nothing is changed.

    Without data, nodes in a type that does not hold all float32 values say that no ranges speak for them. An Add that a
    product with scales at run time takes up as its bias is told as a node of its own. Raises what `refuse_half` does.
    """
    refuse_half(target, recipe)
    kind = HALVES[recipe.half or ""]
    kept = _quantized(model, plan) if recipe.quantizes else _excluded(model, recipe)
    found, _ = _planned(model, kind, kept, data, settings)
    nodes = _joined(plan.nodes, {n.node: n for n in found.nodes}) if recipe.quantizes else found.nodes
    if data is not None or kind.largest is None:
        return replace(plan, nodes=nodes)
    alone = f"by its operator and weights alone: whether its values stay below {kind.largest:g} is not known"
    nodes = tuple(replace(n, reason=alone) if n.how == HALF else n for n in nodes)
    count = sum(n.how == HALF for n in nodes)
    note = f"{count} nodes are in {kind.name} by operators and weights alone: give --calib for the ranges of values"
    return replace(plan, nodes=nodes, notes=(*plan.notes, note))


def _quantized(model: Model, plan: Plan) -> dict[str, str]:
    """The nodes that will be in int8, and those that will read what is dequantized for them."""
    kept = {n.node: "in int8" for n in plan.nodes if n.how != FLOAT}
    for node in model.graph.nodes:
        pairs = [plan.tensors[t.name] for t in node.inputs if t.name in plan.tensors]
        if any(pair.all_readers or node.label in pair.also for pair in pairs):
            kept.setdefault(node.label, READS_QUANTIZED)
    return kept


def _planned(
    model: Model, kind: HalfType, kept: dict[str, str], data: Dataset | None, settings: Settings
) -> tuple[HalfPlan, int]:
    """The nodes that may be in 16 bits, by the ranges of their values where there is data, and of how many samples."""
    shape_inference.infer(model)
    if data is None:
        return plan_half(model, kind, None, kept), 0
    calibrated = _calibrated(data, settings)
    spans = _ranges(model, kind, calibrated, settings)
    if model.weight_bytes() < candidate_race.MAX_BYTES:
        kept |= _noisy(model, plan_half(model, kind, spans, kept), calibrated, settings)
    return plan_half(model, kind, spans, kept), len(calibrated)


def _excluded(model: Model, recipe: Recipe) -> dict[str, str]:
    picked = match_nodes(model, recipe.exclude, "exclude pattern")
    return {node.label: f"excluded by {pattern!r}" for node, pattern in picked.items()}


def _calibrated(data: Dataset, settings: Settings) -> Dataset:
    """The samples to look at: those not held out, or some of them that are spread over all."""
    numbers = split(len(data))[0]
    if settings.samples == "auto":
        numbers = sorted(numbers[i] for i in spread(len(numbers))[:_MOST_SAMPLES])
    return data.subset(numbers)


def _ranges(model: Model, kind: HalfType, samples: Dataset, settings: Settings) -> dict[str, Span]:
    """Extremes of the graph's float32 tensors; of a type that holds all of them, none are needed."""
    if kind.largest is None:
        return {}
    top = [*model.graph.inputs, *(t for node in model.graph.nodes for t in node.outputs if t.name)]
    names = [t.name for t in top if model.elem_type(t) == TensorProto.FLOAT]
    return extremes(
        model, names, samples, threads=settings.threads, device=settings.device, progress=settings.progress
    )


def _noisy(model: Model, plan: HalfPlan, samples: Dataset, settings: Settings) -> dict[str, str]:
    """The products in 16 bits whose rounded constants cost more than rounding does elsewhere, with the reason."""
    few = [samples[i] for i in spread(len(samples))[:_NOISE_SAMPLES]]
    found = rounding_db(model, plan.chosen, plan.kind, few, threads=settings.threads)
    return {
        name: f"its constants rounded to {plan.kind.name} leave {db:.0f} dB of its output"
        for name, db in found.items()
        if db < plan.kind.least_db
    }


def _joined(nodes: tuple[NodePlan, ...], halves: dict[str, NodePlan]) -> tuple[NodePlan, ...]:
    """The nodes of a plan; those left in float take what the plan of 16 bits says, and keep why they are not int8."""
    joined = []
    for node in nodes:
        half = halves.get(node.node) if node.how == FLOAT else None
        if half is not None and half.how == HALF:
            node = replace(node, how=HALF)
        elif half is not None:
            node = replace(node, reason=f"{node.reason}; float32: {half.reason}")
        joined.append(node)
    return tuple(joined)
