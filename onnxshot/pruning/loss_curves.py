"""Loss curves for sparsity allocation: output error as a function of the sparsity of each layer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.execution.layer_rows import Feeds, samples_that_fit
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.proto_copies import with_initializers_serialized
from onnxshot.maths import optimal_brain_surgeon as obs
from onnxshot.maths.finite import finite
from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments
from onnxshot.maths.sparsity_allocation import Curve
from onnxshot.pruning.input_blocks import blocks_of, counts_of, in_place
from onnxshot.pruning.layerwise_pruning import HELD, PrunableLayer, positions_per_sample

_SPARSITIES = (0.25, 0.5, 0.7, 0.85, 0.95)
_MEASURED_AT = 1  # index of the sparsity at which the output error is measured
_SAMPLES, _MEASURED_ON = 48, 8  # samples for layer errors, and for output errors
_FOLD = 3  # every 3rd sample is held out of the weight update; errors are measured on these
_ROWS = 4096
_DAMPING = 0.05
_LARGE = 1e15  # larger weights or inputs overflow float32 when squared and summed


def loss_curves(
    reference: ModelProto,
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
    is measured at one sparsity, by running the model with that layer pruned.

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

    Memory: `HELD` bytes of activations, the rows of one layer, and a few models.
    """
    feeds = feeds[:_SAMPLES]
    feeds = feeds[: samples_that_fit(reference, [layer.name for layer in layers], feeds, HELD)]
    errors: list[list[float]] = []

    def candidate(walk: Walk, layer: PrunableLayer) -> bytes:
        x, sizes = _input_rows(walk, layer, positions_per_sample(layer, len(feeds), _ROWS))
        found, changed = _errors(walk, layer, x, sizes, pattern, keep_zeros)
        errors.append(found)
        return with_initializers_serialized(reference, changed)

    def candidates() -> Iterator[bytes]:
        walk = Walk(reference, feeds, threads)
        for done, layer in enumerate(layers, 1):
            yield candidate(walk, layer)  # not held here while it runs
            if progress is not None:
                progress("measuring", done, len(layers))

    samples = [Sample(str(i), dict(feed)) for i, feed in enumerate((feeds[_FOLD - 1 :: _FOLD] or feeds)[:_MEASURED_ON])]
    measured = measure_candidates(reference.SerializeToString(), candidates(), samples, threads=threads)
    noise = [10 ** (-one.typical_db / 10) for one in measured]
    return [
        Curve(layer.size, _SPARSITIES, tuple(noise[i] * e / max(errors[i][_MEASURED_AT], 1e-30) for e in errors[i]))
        for i, layer in enumerate(layers)
    ]


def _input_rows(walk: Walk, layer: PrunableLayer, share: int) -> tuple[NDArray[np.float32], list[int]]:
    """Inputs of the layer in the walk at up to `share` positions of every sample [G, N, K], and rows of each sample."""
    kernel = layer.shape[2:]
    found = [
        layer.form.inputs(x, layer.form.output_sizes(x.shape, kernel), share, number, kernel)
        for number, x in enumerate(walk.values(layer.input))
    ]
    return np.concatenate(found).transpose(1, 0, 2), [len(rows) for rows in found]


def _errors(
    walk: Walk,
    layer: PrunableLayer,
    x: NDArray[np.float32],
    sizes: Sequence[int],
    pattern: Pattern,
    keep_zeros: bool,
) -> tuple[list[float], dict[str, NDArray[np.float32]]]:
    """The layer's errors at `_SPARSITIES`, and its constants at the one where the outputs are measured.

    x: inputs [G, N, K]. sizes: rows of each sample.
    """
    stored = walk.constant(layer.weight)
    order = layer.order(pattern)
    weight = layer.form.table(stored)[:, :, order]
    x = x[:, :, order]
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean if layer.bias else x
    held_out = np.repeat(np.arange(len(sizes)) % _FOLD == _FOLD - 1, sizes)
    if len(sizes) < _FOLD:
        held_out[:] = True
    one, other = centred[:, held_out if len(sizes) < _FOLD else ~held_out], centred[:, held_out]
    fixed = weight == 0 if keep_zeros else None
    found, changed = [], dict[str, NDArray[np.float32]]()
    for i, (left, error) in enumerate(_by_sparsity(weight, one, other, layer.size, pattern, fixed)):
        found.append(error)
        if i == _MEASURED_AT:
            changed[layer.weight] = layer.form.stored(in_place(left, order), stored)
            if layer.bias:
                bias = walk.constant(layer.bias)
                moved = np.einsum("gok,gk->go", weight - left, mean[:, 0])
                changed[layer.bias] = bias + moved.reshape(bias.shape)
    return found, changed


def _by_sparsity(
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    judges: NDArray[np.float32],
    size: int,
    pattern: Pattern,
    fixed: Mask | None,
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The weight [G, O, K] at each of `_SPARSITIES`, updated on rows x [G, N, K], and its error on held-out rows.

    Prunes by magnitude if the second moments are not finite or would overflow.
    """
    blocks = blocks_of(weight.shape[2], pattern)
    nothing = np.zeros(weight.shape, bool) if fixed is None else fixed
    factors = _factors(x, blocks)
    if not factors or max(float(np.abs(values).max(initial=0)) for values in (weight, x)) > _LARGE:
        yield from _by_size(weight, size, pattern, nothing)
        return
    second = judges.transpose(0, 2, 1) @ judges if len(blocks) == 1 else None
    for sparsity in _SPARSITIES:
        count = int(sparsity * size)
        counts = [count] if second is not None else counts_of(blocks, weight, x, pattern, count, nothing)
        left = np.empty_like(weight)
        for block, factor, share in zip(blocks, factors, counts, strict=True):
            part = None if fixed is None else fixed[:, :, block]
            left[:, :, block] = obs.prune(weight[:, :, block], factor, pattern, share, part)[1]
        if second is not None:
            yield left, obs.error(left, weight, second)
        else:
            yield left, float(np.square(judges @ (left - weight).transpose(0, 2, 1), dtype=np.float64).sum())


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
    weight: NDArray[np.float32], size: int, pattern: Pattern, fixed: Mask
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The weight at each of `_SPARSITIES`, pruned by magnitude, and the energy of the removed weights."""
    energy = np.square(weight, dtype=np.float64)
    for sparsity in _SPARSITIES:
        lowest = lowest_scores(energy.reshape(-1, weight.shape[2]), pattern, int(sparsity * size))
        gone = lowest.reshape(weight.shape) | fixed
        yield np.where(gone, np.float32(0), weight), float(energy[gone].sum())
