"""Prune all layers of a model: on samples or by magnitude, with fallbacks where outputs would not be finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxshot.calibration.readers import Dataset
from onnxshot.errors import ModelError
from onnxshot.execution.layer_rows import Feeds
from onnxshot.graph import edit
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype, narrowed
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.pruning.keep_finite import Fallbacks, FiniteGuard
from onnxshot.pruning.layerwise_pruning import PrunedLayer, by_magnitude, prune_layers
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
    given: Mapping[str, PrunedLayer] | None = None,
) -> PrunedLayers:
    """Prune all layers on samples, or by magnitude if there are none; weights are rounded to their storage type.

    Args:
        prunable: The model and its layers.
        counts: Number of zeros by layer name.
        asked: Pattern and `keep_zeros`.
        feeds: Samples.
        settings: Threads and progress.
        given: Layers whose result is already known.
    """
    if not feeds:
        return _as_stored(prunable, by_magnitude_alone(prunable, counts, asked.parsed_pattern))
    found = prune_layers(
        prunable.proto, prunable.layers, counts, asked.parsed_pattern, feeds, given=given or {},
        keep_zeros=asked.keep_zeros, threads=settings.threads, progress=settings.progress,
    )  # fmt: skip
    return _as_stored(prunable, found)


def by_magnitude_alone(prunable: PrunableModel, counts: Mapping[str, int], pattern: Pattern) -> PrunedLayers:
    """Prune all layers by magnitude; nothing compensates for the zeros."""
    return {la.name: by_magnitude(la, prunable.tables[la.name], pattern, counts[la.name]) for la in prunable.layers}


def kept_finite(
    prunable: PrunableModel,
    pruned: PrunedLayers,
    counts: Mapping[str, int],
    asked: PruneStage,
    feeds: Feeds,
    data: Dataset,
    settings: Settings,
) -> PrunedLayers:
    """Replace layers by fallbacks where an output would not be finite on some sample, held out or not.

    The layers behind a fallback are fitted again, since they were fitted to inputs that are not finite.
    """
    guard = FiniteGuard(
        prunable.proto, prunable.layers, prunable.tables, counts, asked.parsed_pattern, settings.threads
    )
    fallbacks: Fallbacks = {}
    for rounds in itertools.count(1):
        needed = guard.fallbacks_for(pruned, fallbacks, nonempty_feeds(data, range(len(data))))
        if needed == fallbacks:
            break
        fallbacks, pruned = needed, guard.applied(pruned, needed)
        if feeds and rounds <= _ROUNDS:
            given = {name: pruned[name] for name in fallbacks}
            pruned = pruned_layers(prunable, counts, asked, feeds, settings, given)
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
    proto = model.to_proto()
    again = layers_named(proto, list(zeros))
    stored = {t.name: t for t in proto.graph.initializer}
    for layer, wanted in zip(again, zeros.values(), strict=True):
        found = int((numpy_helper.to_array(stored[layer.weight]) == 0).sum())
        if found != wanted:
            raise ModelError(f"{layer.name!r}: {found} zeros were written, not {wanted}")


def nonempty_feeds(data: Dataset, numbers: Iterable[int]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The samples of these numbers, without those that have an empty input."""
    feeds = (data[i].feed for i in numbers)
    return (feed for feed in feeds if all(np.size(value) for value in feed.values()))


def _as_stored(prunable: PrunableModel, found: Mapping[str, PrunedLayer]) -> PrunedLayers:
    """Round weights to the narrow type they were stored in, so that the file does not grow; overflow is left."""
    nodes = {node.label: node for node in prunable.model.graph.nodes}
    kinds = {n: int(getattr(nodes[n].inputs[1], "stored_as", 0)) for n in found}

    def rounded(weight: NDArray[np.float32], kind: int) -> NDArray[np.float32]:
        values = narrowed(weight, kind).astype(np.float32)
        return values if np.isfinite(values).all() else weight

    return {n: replace(p, weight=rounded(p.weight, kinds[n])) if kinds[n] else p for n, p in found.items()}
