"""First stage: load a model and normalize it for a recipe and a target."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.delivery.record import Record, precisions, record
from onnxshot.delivery.write_results import input_bytes
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import FixedShapes
from onnxshot.graph.load import load_model
from onnxshot.logs import stage
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.planning.plan import Plan
from onnxshot.planning.precision16_ops import FP16
from onnxshot.planning.scales import Evidence
from onnxshot.planning.schemes import schemes
from onnxshot.planning.trained_scales import NOTHING, Trained
from onnxshot.precision16.bfloat16_emulation import computes_bfloat16
from onnxshot.precision16.convert import refuse_precision16
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.model_inputs import fixed_shapes_for
from onnxshot.rewriting.prepare import half_notes, prepare, widen
from onnxshot.rewriting.undo_quantization import to_float
from onnxshot.settings import Settings
from onnxshot.targets import target_named
from onnxshot.targets.base import Target


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float model, normalized for a recipe and a target. Rewriting changes `model` in place.

    Attributes:
        source: the model as it was given.
        recipe: what to do with it.
        settings: how to run it.
        target: the runtime that it is for.
        model: the normalized model.
        source_hash: SHA-256 (hex) of the graph and weights as they were given.
        source_bytes: size of the given model, external data included.
        fixed_shapes: the input dimensions that the recipe fixes.
        trained: scales that a quantized model brought and that are kept; empty for a float model.
        widened: the pass that knows which tensors were computed in 16 bits and are float32 now.
        requantized: whether Q/DQ pairs were taken out of the given model.
        notes: what a user should know.
        seconds: how long normalizing took.
    """

    source: str | Path | ModelProto
    recipe: Recipe
    settings: Settings
    target: Target
    model: Model
    source_hash: str
    source_bytes: int
    fixed_shapes: FixedShapes
    trained: Trained
    widened: WidenPrecision16
    requantized: bool
    notes: tuple[str, ...]
    seconds: float

    @property
    def keeps_half(self) -> bool:
        """Whether the result computes in 16 bits what the given model computes in 16 bits."""
        return _keeps_half(self.target, self.recipe, self.widened)

    def plan(self, recipe: Recipe | None = None, evidence: Evidence | None = None) -> Plan:
        """Plan the model for a recipe, by default its own; without `evidence` the plan has no scales."""
        return make_plan(self.model, self.target, recipe or self.recipe, evidence, self.trained)

    def record(self, recipe: Recipe, plan: Plan, *, sampled: bool) -> Record:
        """Return the record from which a replay makes the result of this recipe and plan again."""
        return record(recipe, self.source_hash, self.settings, precisions(plan), sampled=sampled)


def prepare_model(source: str | Path | ModelProto, recipe: Recipe, settings: Settings) -> Prepared:
    """Load a model and normalize it; everything that the target cannot run is refused before any work.

    Raises:
        TargetError: the target does not run what the recipe asks for.
        ModelError: the model does not load or cannot be normalized.
        UsageError: fixed shapes contradict the model, or it is quantized already and nobody asked what to do about it.
    """
    target = target_named(recipe.target)
    schemes(target, recipe)
    refuse_precision16(target, recipe)
    model = load_model(source)
    source_hash = model_hash(model)
    fixed_shapes = fixed_shapes_for(model, recipe.batch, recipe.shapes)
    source_bytes = input_bytes(source, model)
    requantized = bool(already_quantized(model))
    widened, notes, trained = WidenPrecision16(), list[str](), NOTHING
    if recipe.quantizes or (recipe.half == FP16.name and computes_bfloat16(source)):
        widened = widen(model)
        notes += half_notes(widened.computed, kept=target.keeps_half)
    if recipe.quantizes or settings.requantize:  # 16-bit floats stay around what is quantized
        trained = to_float(model, complete=recipe.complete, requantize=settings.requantize)
    started = time.perf_counter()
    half = _keeps_half(target, recipe, widened)
    with stage("normalize"):
        prepare(model, target, recipe, keep_overridable=settings.keep_overridable, half=half)
    seconds = time.perf_counter() - started
    return Prepared(
        source, recipe, settings, target, model, source_hash, source_bytes, fixed_shapes, trained, widened, requantized,
        tuple(notes), seconds,
    )  # fmt: skip


def _keeps_half(target: Target, recipe: Recipe, widened: WidenPrecision16) -> bool:
    return target.keeps_half and recipe.quantizes and bool(widened.computed)
