"""The model that pruning starts from, with the layers that are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.errors import UsageError
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.graph.skip import Skip
from onnxshot.passes.normalize import normalize
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.pruning.layerwise_pruning import PrunableLayer
from onnxshot.pruning.prunable_layers import Tables, choose_layers, layers_named
from onnxshot.recipes.stages import PruneStage
from onnxshot.rewriting.prepare import half_notes, widen


@dataclass(frozen=True, slots=True, eq=False)
class PrunableModel:
    """A normalized model and its layers.

    Attributes:
        source: The model as it was given.
        model: The same, normalized, in float32; `apply` changes it.
        before: The same before pruning; later changes of `model` do not touch it.
        source_hash: `model_hash` of the given model.
        widened: Which tensors were computed in 16 bits.
        layers: The layers to prune, in graph order.
        tables: Their weights before pruning, by layer name.
        skips: The other layers with weights, with the reason.
        notes: What the user should know.
    """

    source: str | Path | ModelProto
    model: Model
    before: LeanModel
    source_hash: str
    widened: WidenPrecision16
    layers: tuple[PrunableLayer, ...]
    tables: Tables
    skips: tuple[Skip, ...]
    notes: tuple[str, ...]


def prunable_model(source: str | Path | ModelProto, model: Model, asked: PruneStage) -> PrunableModel:
    """Normalize a model and choose the layers to prune.

    Args:
        source: The model as it was given.
        model: The same, loaded; it is changed.
        asked: Pattern, includes and excludes.

    Raises:
        ModelError: A tensor is too large for this machine.
        UsageError: There is nothing to prune, or a glob matches nothing.
    """
    source_hash = model_hash(model)
    widened = widen(model)
    normalize(model)
    refuse_giants(model)
    labels, skips = choose_layers(model, asked.parsed_pattern, asked.include, asked.exclude)
    if not labels:
        why = f": {skips[0].node!r} ({skips[0].op}): {skips[0].reason}" if skips else ""
        raise UsageError(f"nothing to prune{why}", "it prunes Conv, Gemm and MatMul with constant float32 weights")
    before = LeanModel.of(model)
    layers = layers_named(before, labels)
    tables = Tables(before, {layer.name: layer.weight for layer in layers})
    notes = tuple(half_notes(widened.computed, kept=True))
    return PrunableModel(source, model, before, source_hash, widened, tuple(layers), tables, tuple(skips), notes)
