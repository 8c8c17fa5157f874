"""Convert what a run leaves in float32 to float16 or bfloat16: collect ranges, plan, rewrite."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx import TensorProto

from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sampling import spread
from onnxshot.calibration.stats import Span
from onnxshot.errors import TargetError
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
from onnxshot.wording import worded

_MOST_SAMPLES = 128  # by default; only minima and maxima are collected
_NOISE_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Converted:
    """The outcome of a conversion.

    Attributes:
        plan: The plan of the run, with the nodes that are in 16 bits now.
        samples: Number of samples that ranges were collected on.
        notes: What the user should know.
    """

    plan: Plan
    samples: int
    notes: tuple[str, ...]


def refuse_precision16(target: Target, recipe: Recipe) -> None:
    """Raise TargetError if the target does not run the 16-bit type of the recipe."""
    reason = target.refused.get(recipe.half or "")
    if reason:
        raise TargetError(f"[[precision={recipe.precision}]]: {reason}", "use [[precision=int8]] or [[precision=fp16]]")


def convert_to_precision16(
    model: Model, plan: Plan, target: Target, recipe: Recipe, data: Dataset | None, settings: Settings
) -> Converted:
    """Convert the eligible float32 nodes of a model to the 16-bit type of the recipe.

    Args:
        model: The model after quantization; it is changed.
        plan: The plan of the run.
        target: The target.
        recipe: The type, and the excluded nodes.
        data: Samples to collect ranges on. Without, operators and weights alone decide.
        settings: Threads, samples, device.
    """
    kind = HALVES[recipe.half or ""]
    found, seen = _planned(model, kind, {} if recipe.quantizes else _excluded(model, recipe), data, settings)
    ToPrecision16(found).run(model)
    joined = _joined(plan.nodes, {n.node: n for n in found.nodes}) if recipe.quantizes else found.nodes
    notes = [target.half_note] if target.half_note else []
    if data is None and kind.largest is not None:
        where = "where operators and weights allow it, whatever the activations"
        notes.append(worded(f"no data: {kind.name} {where}; give [[calib=DATA]]"))
    if not found.chosen:
        notes.append(f"nothing was converted to {kind.name}: the skips give the reason for each node")
    return Converted(replace(plan, nodes=joined), seen, tuple(notes))


def predict_conversion(
    model: Model, plan: Plan, target: Target, recipe: Recipe, data: Dataset | None, settings: Settings
) -> Plan:
    """Predict what `convert_to_precision16` will do to a normalized model; the model is not changed.

    An Add that dynamic quantization will merge into a product as its bias is listed as a node of its own.

    Args:
        model: The normalized model, before quantization.
        plan: Its plan of quantization.
        target: The target.
        recipe: The type, and the excluded nodes.
        data: Samples to collect ranges on. Without, float16 nodes are marked as unchecked for overflow.
        settings: Threads, samples, device.

    Returns:
        The plan, with the nodes that will be in 16 bits.

    Raises:
        TargetError: The target does not run the type.
    """
    refuse_precision16(target, recipe)
    kind = HALVES[recipe.half or ""]
    kept = _quantized(model, plan) if recipe.quantizes else _excluded(model, recipe)
    found, _ = _planned(model, kind, kept, data, settings)
    nodes = _joined(plan.nodes, {n.node: n for n in found.nodes}) if recipe.quantizes else found.nodes
    if data is not None or kind.largest is None:
        return replace(plan, nodes=nodes)
    alone = f"by its operator and weights alone: whether its values stay below {kind.largest:g} is not known"
    nodes = tuple(replace(n, reason=alone) if n.how == HALF else n for n in nodes)
    count = sum(n.how == HALF for n in nodes)
    note = f"{count} nodes are in {kind.name} by operators and weights alone: give " + worded(
        "[[calib=DATA]] for the ranges of values"
    )
    return replace(plan, nodes=nodes, notes=(*plan.notes, note))


def _quantized(model: Model, plan: Plan) -> dict[str, str]:
    """The nodes that will be in int8 and those that will read dequantized tensors, with the reason."""
    kept = {n.node: "in int8" for n in plan.nodes if n.how != FLOAT}
    for node in model.graph.nodes:
        pairs = [plan.tensors[t.name] for t in node.inputs if t.name in plan.tensors]
        if any(pair.all_readers or node.label in pair.also for pair in pairs):
            kept.setdefault(node.label, READS_QUANTIZED)
    return kept


def _planned(
    model: Model, kind: HalfType, kept: dict[str, str], data: Dataset | None, settings: Settings
) -> tuple[HalfPlan, int]:
    """(Plan of the nodes to convert, number of samples that ranges were collected on)."""
    shape_inference.infer(model)
    if data is None:
        return plan_half(model, kind, None, kept), 0
    calibrated = _calibrated(data, settings)
    spans = _ranges(model, kind, calibrated, settings)
    kept |= _noisy(model, plan_half(model, kind, spans, kept), calibrated, settings)
    return plan_half(model, kind, spans, kept), len(calibrated)


def _excluded(model: Model, recipe: Recipe) -> dict[str, str]:
    """The nodes that the recipe excludes, with the pattern."""
    picked = match_nodes(model, recipe.exclude, "exclude pattern")
    return {node.label: f"excluded by {pattern!r}" for node, pattern in picked.items()}


def _calibrated(data: Dataset, settings: Settings) -> Dataset:
    """The samples to collect ranges on: those not held out; by default at most 128, spread evenly."""
    numbers = split(len(data))[0]
    if settings.samples == "auto":
        numbers = sorted(numbers[i] for i in spread(len(numbers))[:_MOST_SAMPLES])
    return data.subset(numbers)


def _ranges(model: Model, kind: HalfType, samples: Dataset, settings: Settings) -> dict[str, Span]:
    """Minimum and maximum of each float32 tensor; none for a type with the range of float32."""
    if kind.largest is None:
        return {}
    top = [*model.graph.inputs, *(t for node in model.graph.nodes for t in node.outputs if t.name)]
    names = [t.name for t in top if model.elem_type(t) == TensorProto.FLOAT]
    return extremes(
        model, names, samples, threads=settings.threads, device=settings.device, progress=settings.progress
    )


def _noisy(model: Model, plan: HalfPlan, samples: Dataset, settings: Settings) -> dict[str, str]:
    """The products whose constants lose too much accuracy when rounded to 16 bits, with the reason."""
    few = [samples[i] for i in spread(len(samples))[:_NOISE_SAMPLES]]
    found = rounding_db(model, plan.chosen, plan.kind, few, threads=settings.threads)
    return {
        name: f"its constants rounded to {plan.kind.name} leave {db:.0f} dB of its output"
        for name, db in found.items()
        if db < plan.kind.least_db
    }


def _joined(nodes: tuple[NodePlan, ...], halves: dict[str, NodePlan]) -> tuple[NodePlan, ...]:
    """The nodes of a plan, float ones updated by the 16-bit plan; they keep the reason why they are not in int8."""
    joined = []
    for node in nodes:
        half = halves.get(node.node) if node.how == FLOAT else None
        if half is not None and half.how == HALF:
            node = replace(node, how=HALF)
        elif half is not None:
            node = replace(node, reason=f"{node.reason}; float32: {half.reason}")
        joined.append(node)
    return tuple(joined)
