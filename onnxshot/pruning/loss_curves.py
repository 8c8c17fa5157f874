"""Loss curves for sparsity allocation: output error as a function of the sparsity of each layer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths import optimal_brain_surgeon as obs
from onnxshot.maths.finite import finite
from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments
from onnxshot.maths.sparsity_allocation import Curve
from onnxshot.pruning.input_blocks import blocks_of, counts_of, in_place
from onnxshot.pruning.layerwise_pruning import PrunableLayer, positions_per_sample

_SPARSITIES = (0.25, 0.5, 0.7, 0.85, 0.95)
_MEASURED_AT = 1  # index of the sparsity at which the output error is measured
_SAMPLES, _MEASURED_ON = 48, 8  # samples for layer errors, and for output errors
_FOLD = 3  # every 3rd sample is held out of the weight update; errors are measured on these
_ROWS = 4096
_OUTPUTS = 128  # outputs of a layer whose errors are compared between sparsities, at most
_TOGETHER = 6  # layers whose candidates run from the same tensors on
_DAMPING = 0.05
_LARGE = 1e15  # larger weights or inputs overflow float32 when squared and summed


def loss_curves(
    reference: LeanModel,
    layers: Sequence[PrunableLayer],
    pattern: Pattern,
    feeds: Feeds,
    *,
    keep_zeros: bool = False,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Curve]:
    """Estimate the output error of pruning each layer alone, as a share of the output energy, by sparsity.

    The shape of a curve is the layer's own error after the OBS update, on second moments of the float model. Its height
    is measured at one sparsity, by running the model with that layer pruned, from where the layer stands.

    Args:
        reference: The float model.
        layers: The layers, in graph order.
        pattern: Pattern of the zeros.
        feeds: Samples; at most 48 are used.
        keep_zeros: Weights that are zero stay zero.
        threads: Samples that run at a time.
        progress: Called as (stage, done, total).

    Raises:
        ModelError: The model does not run.

    Memory: what a `Walk` holds, the rows of one layer, and the pruned weights of a few layers.
    """
    feeds = feeds[:_SAMPLES]
    judges = (range(len(feeds))[_FOLD - 1 :: _FOLD] or range(len(feeds)))[:_MEASURED_ON]
    walk, errors, noise = Walk(reference, feeds, threads), list[list[float]](), list[float]()
    for start in range(0, len(layers), _TOGETHER):
        group = layers[start : start + _TOGETHER]
        walk.values(group[0].input)
        rest, samples = walk.rest(), [Sample(str(i), walk.held(i)) for i in judges]

        def candidates(group: Sequence[PrunableLayer] = group, rest: LeanModel = rest) -> Iterator[LeanModel]:
            for layer in group:
                found, changed = _errors(walk, layer, len(feeds), pattern, keep_zeros)
                errors.append(found)
                yield rest.replaced(changed)
                if progress is not None:
                    progress("measuring", len(errors), len(layers))

        noise += [
            10 ** (-one.typical_db / 10) for one in measure_candidates(rest, candidates(), samples, threads=threads)
        ]
    return [
        Curve(layer.size, _SPARSITIES, tuple(height * e / max(found[_MEASURED_AT], 1e-30) for e in found))
        for layer, height, found in zip(layers, noise, errors, strict=True)
    ]


def _input_rows(walk: Walk, layer: PrunableLayer, share: int) -> list[NDArray[np.float32]]:
    """Inputs of the layer in the walk at up to `share` positions of every sample, each [N, G, K]."""
    kernel = layer.shape[2:]
    return [
        layer.form.inputs(x, layer.form.output_sizes(x.shape, kernel), share, number, kernel)
        for number, x in enumerate(walk.values(layer.input))
    ]


def _errors(
    walk: Walk, layer: PrunableLayer, samples: int, pattern: Pattern, keep_zeros: bool
) -> tuple[list[float], dict[str, NDArray[np.float32]]]:
    """The layer's errors at `_SPARSITIES`, and its constants at the one where the outputs are measured.

    Of large layers, errors are those of some outputs.
    """
    rows = _input_rows(walk, layer, positions_per_sample(layer, samples, _ROWS))
    stored = walk.constant(layer.weight)
    order = layer.order(pattern)
    weight = layer.form.table(stored)[:, :, order]
    held_out = range(_FOLD - 1, samples, _FOLD) or range(samples)
    learned = [i for i in range(samples) if i not in held_out] or held_out
    x, judges = (
        np.concatenate([rows[i] for i in part]).transpose(1, 0, 2)[:, :, order] for part in (learned, held_out)
    )
    mean = np.zeros((len(x), 1, x.shape[2]), np.float32)
    if layer.bias:
        count = x.shape[1] + judges.shape[1]
        mean = (x.sum(1, keepdims=True, dtype=np.float64) + judges.sum(1, keepdims=True, dtype=np.float64)) / count
        mean = mean.astype(np.float32)
        x, judges = x - mean, judges - mean
    fixed = weight == 0 if keep_zeros else None
    fits = _Fits(x, judges, blocks_of(weight.shape[2], pattern), pattern)
    left, _ = fits.at(_SPARSITIES[_MEASURED_AT], weight, fixed)
    changed = {layer.weight: layer.form.stored(in_place(left, order), stored)}
    if layer.bias:
        bias = walk.constant(layer.bias)
        changed[layer.bias] = bias + np.einsum("gok,gk->go", weight - left, mean[:, 0]).reshape(bias.shape)
    picked = _some_outputs(weight, pattern)
    weight, fixed = weight[:, picked], None if fixed is None else fixed[:, picked]
    return [fits.at(sparsity, weight, fixed)[1] for sparsity in _SPARSITIES], changed


def _some_outputs(weight: NDArray[np.float32], pattern: Pattern) -> NDArray[np.int64]:
    """Up to `_OUTPUTS` evenly spread outputs of each group, whole blocks of the pattern."""
    outputs = weight.shape[1]
    if outputs <= _OUTPUTS or len(weight) > 1:
        return np.arange(outputs)
    step = -(-outputs // _OUTPUTS)
    return np.flatnonzero(np.arange(outputs) // pattern.rows % step == 0)


class _Fits:
    """Weights of a layer at several sparsities, updated on the same rows.

    Args:
        x: Rows to update on [G, N, K].
        judges: Rows to measure errors on.
        blocks: Columns that are updated at once.
        pattern: Pattern of the zeros.
    """

    def __init__(
        self, x: NDArray[np.float32], judges: NDArray[np.float32], blocks: list[slice], pattern: Pattern
    ) -> None:
        self._x, self._judges, self._blocks, self._pattern = x, judges, blocks, pattern
        largest = float(np.abs(x).max(initial=0))
        self._factors = _factors(x, blocks) if largest <= _LARGE else []
        self._second = judges.transpose(0, 2, 1) @ judges if self._factors and len(blocks) == 1 else None

    def at(self, sparsity: float, weight: NDArray[np.float32], fixed: Mask | None) -> tuple[NDArray[np.float32], float]:
        """The weight [G, O, K] at this sparsity, and its error on the held-out rows.

        Prunes by magnitude if the second moments are not finite or would overflow; the error is then the energy of the
        removed weights.
        """
        count = int(sparsity * weight.size)
        nothing = np.broadcast_to(np.False_, weight.shape) if fixed is None else fixed
        if not self._factors or float(np.abs(weight).max(initial=0)) > _LARGE:
            return _by_size(weight, count, self._pattern, nothing)
        whole = self._second is not None
        counts = [count] if whole else counts_of(self._blocks, weight, self._x, self._pattern, count, nothing)
        if whole:
            left = obs.prune(weight, self._factors[0], self._pattern, count, fixed)[1]
        else:
            left = np.empty_like(weight)
            for block, factor, share in zip(self._blocks, self._factors, counts, strict=True):
                part = nothing[:, :, block]
                left[:, :, block] = obs.prune(weight[:, :, block], factor, self._pattern, share, part)[1]
        if self._second is not None:
            return left, obs.error(left, weight, self._second)
        return left, float(np.square(self._judges @ (left - weight).transpose(0, 2, 1), dtype=np.float64).sum())


def _factors(x: NDArray[np.float32], blocks: list[slice]) -> list[NDArray[np.float32]]:
    """`obs.inverse_factor` of the inputs of each block of columns; empty if any of them is not finite."""
    nothing = np.zeros((x.shape[0], 0, 0), np.float32)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            parts = (x[:, :, block] for block in blocks)
            found = [
                obs.inverse_factor(Moments(part.transpose(0, 2, 1) @ part, nothing).damped(_DAMPING)) for part in parts
            ]
    except np.linalg.LinAlgError:
        return []
    return found if finite(*found) else []


def _by_size(
    weight: NDArray[np.float32], count: int, pattern: Pattern, fixed: Mask
) -> tuple[NDArray[np.float32], float]:
    """The weight pruned by magnitude, and the energy of the removed weights."""
    energy = np.square(weight, dtype=np.float64)
    gone = lowest_scores(energy.reshape(-1, weight.shape[2]), pattern, count).reshape(weight.shape) | fixed
    return np.where(gone, np.float32(0), weight), float(energy[gone].sum())
