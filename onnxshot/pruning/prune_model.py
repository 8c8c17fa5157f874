"""Prune all layers of a model: on samples or by magnitude, with fallbacks where outputs would not be finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Dataset
from onnxshot.errors import ModelError
from onnxshot.execution.layer_rows import Feeds
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph import Constant, edit, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype, narrowed
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.pruning.keep_finite import Fallbacks, FiniteGuard
from onnxshot.pruning.layerwise_pruning import PrunableLayer, PrunedLayer, by_magnitude, prune_layers
from onnxshot.pruning.prunable_layers import layers_named
from onnxshot.pruning.prunable_model import PrunableModel
from onnxshot.recipes.stages import PruneStage
from onnxshot.rewriting.prepare import narrow, widen
from onnxshot.settings import Settings

_ROUNDS = 3  # times that the layers behind a fallback are fitted again

PrunedLayers = dict[str, PrunedLayer]
"""Layer name -> the layer after pruning, in graph order."""


def pruned_layers(
    prunable: PrunableModel,
    counts: Mapping[str, int],
    asked: PruneStage,
    feeds: Feeds,
    settings: Settings,
    kept: KeptArrays,
    given: Mapping[str, PrunedLayer] | None = None,
) -> PrunedLayers:
    """Prune all layers on samples, or by magnitude if there are none; weights are rounded to their storage type.

    Args:
        prunable: The model and its layers.
        counts: Number of zeros by layer name.
        asked: Pattern and `keep_zeros`.
        feeds: Samples.
        settings: Threads and progress.
        kept: Where the pruned weights are kept.
        given: Layers whose result is already known.
    """
    keep = _Kept(prunable, kept)
    if not feeds:
        pattern, tables = asked.parsed_pattern, prunable.tables
        return {
            layer.name: keep(layer, by_magnitude(layer, tables[layer.name], pattern, counts[layer.name]))
            for layer in prunable.layers
        }
    return prune_layers(
        prunable.before, prunable.layers, counts, asked.parsed_pattern, feeds, given=given or {}, keep=keep,
        keep_zeros=asked.keep_zeros, threads=settings.threads, progress=settings.progress,
    )  # fmt: skip


def by_magnitude_alone(prunable: PrunableModel, counts: Mapping[str, int], pattern: Pattern) -> LeanModel:
    """The model with all layers pruned by magnitude, each when it is read. Nothing compensates for the zeros."""

    def weight(layer: PrunableLayer) -> NDArray[np.float32]:
        return by_magnitude(layer, prunable.tables[layer.name], pattern, counts[layer.name]).weight

    before, small, large = prunable.before, dict[str, NDArray[Any]](), dict[str, Constant]()
    for layer in prunable.layers:
        if layer.weight in before.weights:
            values = weights.ComputedValues(layer.shape, np.dtype(np.float32), partial(weight, layer))
            large[layer.weight] = Constant(layer.weight, values)
        else:
            small[layer.weight] = weight(layer)
    copy = before.replaced(small)
    return replace(copy, weights={**copy.weights, **large})


def kept_finite(
    prunable: PrunableModel,
    pruned: PrunedLayers,
    counts: Mapping[str, int],
    asked: PruneStage,
    feeds: Feeds,
    data: Dataset,
    settings: Settings,
    kept: KeptArrays,
) -> PrunedLayers:
    """Replace layers by fallbacks where an output would not be finite on some sample, held out or not.

    The layers behind a fallback are fitted again, since they were fitted to inputs that are not finite.
    """
    guard = FiniteGuard(
        prunable.before, prunable.layers, prunable.tables, counts, asked.parsed_pattern, settings.threads
    )
    fallbacks: Fallbacks = {}
    for rounds in itertools.count(1):
        needed = guard.fallbacks_for(pruned, fallbacks, list(nonempty_feeds(data, range(len(data)))))
        if needed == fallbacks:
            break
        fallbacks, pruned = needed, guard.applied(pruned, needed)
        if feeds and rounds <= _ROUNDS:
            given = {name: pruned[name] for name in fallbacks}
            pruned = pruned_layers(prunable, counts, asked, feeds, settings, kept, given)
    return pruned


def apply(prunable: PrunableModel, pruned: PrunedLayers) -> None:
    """Put the pruned weights into the model."""
    ApplyRepairs(pruned).run(prunable.model)
    edit.remove_unused(prunable.model)


def restore_form(prunable: PrunableModel) -> None:
    """Undo what normalization made larger, store weights in the types they had, and compute in 16 bits again."""
    UndoLargeFolds().run(prunable.model)
    StoreOriginalDtype().run(prunable.model)
    narrow(prunable.model, prunable.widened)


def refuse_lost_zeros(written: Draft, zeros: Mapping[str, int]) -> None:
    """Read a written file back. Raises ModelError if a layer has not exactly as many zeros as recorded.

    zeros: layer name -> number of zeros, in graph order.
    """
    model = load_model(written.path)
    widen(model)
    normalize(model)
    lean = LeanModel.of(model)
    for layer, wanted in zip(layers_named(lean, list(zeros)), zeros.values(), strict=True):
        values = lean.array(layer.weight)
        found = values.size - int(np.count_nonzero(values))
        if found != wanted:
            raise ModelError(f"{layer.name!r}: {found} zeros were written, not {wanted}")


def nonempty_feeds(data: Dataset, numbers: Iterable[int]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The samples of these numbers, without those that have an empty input."""
    feeds = (data[i].feed for i in numbers)
    return (feed for feed in feeds if all(np.size(value) for value in feed.values()))


class _Kept:
    """Rounds weights to the narrow type they were stored in, so that the file does not grow; overflow is left.

    The rounded weights are kept in memory or in a file.
    """

    def __init__(self, prunable: PrunableModel, kept: KeptArrays) -> None:
        nodes = {node.label: node for node in prunable.model.graph.nodes}
        self._kinds = {la.name: int(getattr(nodes[la.name].inputs[1], "stored_as", 0)) for la in prunable.layers}
        self._kept = kept

    def __call__(self, layer: PrunableLayer, pruned: PrunedLayer) -> PrunedLayer:
        weight, kind = pruned.weight, self._kinds[layer.name]
        if kind:
            values = narrowed(weight, kind).astype(np.float32)
            weight = values if np.isfinite(values).all() else weight
        return replace(pruned, weight=self._kept.add(weight))
