"""Sparsity allocation: how many weights of each layer become zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import UsageError
from onnxshot.execution.layer_rows import Feeds
from onnxshot.graph import Model
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.maths.sparsity_allocation import cheapest_allocation, erdos_renyi, exact_counts
from onnxshot.planning.name_patterns import is_lenient, match_nodes
from onnxshot.pruning.layerwise_pruning import PrunableLayer
from onnxshot.pruning.loss_curves import loss_curves
from onnxshot.pruning.prunable_model import PrunableModel
from onnxshot.recipes.stages import PruneStage
from onnxshot.settings import Settings

_LEAST_SAMPLES = 3  # with fewer, the cost of zeros cannot be measured on held-out samples


@dataclass(frozen=True, slots=True)
class ZeroCounts:
    """Number of zeros of each layer, by name, and a note for the user; the note is empty if there is none."""

    counts: dict[str, int]
    note: str = ""


def zero_counts(prunable: PrunableModel, asked: PruneStage, feeds: Feeds, settings: Settings) -> ZeroCounts:
    """Choose the number of zeros of each layer.

    N:M patterns fix it. Layers with a sparsity of their own get that. The rest of the requested zeros is shared out by
    scope: 'layer' (equal sparsity), 'global' (one threshold on LAMP scores), 'erk' (Erdos-Renyi-Kernel) or 'auto'
    (least total loss on measured loss curves).

    Args:
        prunable: The model and its layers.
        asked: Sparsity, pattern, scope and sparsities of single layers; resolved.
        feeds: Samples to measure loss curves on.
        settings: Threads and progress.

    Raises:
        UsageError: A glob of a layer's sparsity matches no layer that is pruned.
    """
    layers, pattern = prunable.layers, asked.parsed_pattern
    least = {la.name: int((prunable.tables[la.name] == 0).sum()) if asked.keep_zeros else 0 for la in layers}
    if pattern.of:
        return ZeroCounts({la.name: n for la, n in zip(layers, _nm_counts(layers, pattern), strict=True)})
    counts = _fixed_counts(prunable.model, layers, asked.layers, least)
    others = [layer for layer in layers if layer.name not in counts]
    left = max(_total(layers, asked.share) - sum(counts.values()), 0)
    if not others:
        return ZeroCounts(counts)
    scope, note = asked.scope or "", ""
    if scope == "auto" and len(feeds) < _LEAST_SAMPLES:
        scope = "layer"
        note = f"zeros were shared out by layer: {len(feeds)} samples are too few to measure their cost"
    if scope == "auto":
        found = loss_curves(
            prunable.before, others, pattern, feeds, keep_zeros=asked.keep_zeros, threads=settings.threads,
            progress=settings.progress,
        )  # fmt: skip
        with_least = [replace(c, least=least[la.name]) for c, la in zip(found, others, strict=True)]
        shares = cheapest_allocation(with_least, left)
    else:
        shares = _counts_by_rule(scope, others, prunable.tables, left, asked.share, least)
    return ZeroCounts(counts | {layer.name: n for layer, n in zip(others, shares, strict=True)}, note)


def _fixed_counts(
    model: Model, layers: Sequence[PrunableLayer], rules: Mapping[str, float], least: Mapping[str, int]
) -> dict[str, int]:
    """Zeros of the layers that --layer names, by layer name; the last matching rule wins. Raises UsageError."""
    found = dict[str, int]()
    known = {layer.name: layer for layer in layers}
    for glob, share in rules.items():
        picked = [node.label for node in match_nodes(model, [glob], "[[layers]]") if node.label in known]
        if not picked and not is_lenient(glob):
            hint = "[[report.layers|onnxshot prune --json]] lists them"
            raise UsageError(f"[[layers]] {glob!r} matches no layer that is pruned", hint)
        found |= {label: max(round(share * known[label].size), least[label]) for label in picked}
    return found


def _counts_by_rule(
    scope: str,
    layers: Sequence[PrunableLayer],
    tables: Mapping[str, NDArray[np.float32]],
    count: int,
    sparsity: float,
    least: Mapping[str, int],
) -> list[int]:
    """Zeros of each layer by a rule that needs no data. count: zeros in total; scope 'layer' uses `sparsity`."""
    sizes, floor = [layer.size for layer in layers], [least[layer.name] for layer in layers]
    if scope == "layer":
        return [max(round(sparsity * size), low) for size, low in zip(sizes, floor, strict=True)]
    if scope == "erk":
        return erdos_renyi([_dimensions(layer) for layer in layers], count, floor)
    scores = [_lamp(tables[layer.name]) for layer in layers]
    count = min(count, sum(sizes))
    if not count:
        return floor
    limit = np.partition(np.concatenate(scores), count - 1)[count - 1]
    shares = [float((score <= limit).mean()) for score in scores]
    return exact_counts(sizes, shares, count, floor)


def _dimensions(layer: PrunableLayer) -> tuple[int, ...]:
    """[O, I / groups, *kernel], whichever way the weight is stored."""
    return layer.shape if layer.op == "Conv" else (layer.outputs, layer.inputs)


def _lamp(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """LAMP scores in rising order [n], comparable between layers: w^2 over the sum of all w^2 that are not smaller.

    Source: Lee et al. 2021, eq. 5.
    """
    squares = np.sort(np.square(weight.reshape(-1), dtype=np.float64))
    left = np.cumsum(squares[::-1])[::-1]
    scores = np.divide(squares, left, out=np.zeros_like(squares), where=left > 0)
    return np.asarray(scores, np.float32)


def _nm_counts(layers: Sequence[PrunableLayer], pattern: Pattern) -> list[int]:
    """Zeros of each layer under an N:M pattern."""
    return [layer.size * (pattern.of - pattern.keep) // pattern.of for layer in layers]


def _total(layers: Sequence[PrunableLayer], sparsity: float) -> int:
    """Number of zeros that give all layers together this sparsity."""
    return round(sparsity * math.fsum(layer.size for layer in layers))
