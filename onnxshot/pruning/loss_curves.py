"""What zeros in each layer cost the network: how a layer's own error grows with them, times how far it is heard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.execution.layer_rows import Feeds, LayerOutputs, layer_outputs, samples_that_fit
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.proto_copies import with_initializers_serialized
from onnxshot.maths import optimal_brain_surgeon as obs
from onnxshot.maths.finite import finite
from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments
from onnxshot.maths.sparsity_allocation import Curve
from onnxshot.pruning.input_blocks import blocks_of, counts_of, in_place
from onnxshot.pruning.layerwise_pruning import HELD, Prunable, named, rows_of, share_of

_SPARSITIES = (0.25, 0.5, 0.7, 0.85, 0.95)
_HEARD_AT = 1  # the sparsity of these at which it is measured what the outputs make of a layer's error
_SAMPLES, _HEARD_ON = 48, 8  # samples of errors, and of outputs
_FOLD = 3  # every so many-th is not updated on: errors and outputs are those of such
_ROWS = 4096
_DAMPING = 0.05
_LARGE = 1e15  # weights and inputs whose squares, times others, float32 does not hold


def curves(
    reference: ModelProto,
    layers: Sequence[Prunable],
    pattern: Pattern,
    feeds: Feeds,
    *,
    keep_zeros: bool = False,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Curve]:
    """The curve of every layer: share of the outputs' energy that is noise when it alone is pruned, by sparsity.

    Its form is that of the layer's error after OBS updates, on second moments of the float model; its height is
    measured at one sparsity, by running the network with that layer pruned. Held: HELD bytes of tensors, one layer's
    rows, and a few models. Raises ModelError where the model does not run.
    """
    feeds = feeds[:_SAMPLES]
    feeds = feeds[: samples_that_fit(reference, [layer.name for layer in layers], feeds, HELD)]
    errors: list[list[float]] = []

    def candidate(walk: Walk, layer: Prunable, outputs: LayerOutputs, share: int) -> bytes:
        x = rows_of(walk, layer, outputs, share)
        found, changed = _errors(walk, layer, x, outputs.starts, pattern, keep_zeros)
        errors.append(found)
        return with_initializers_serialized(reference, changed)

    def candidates() -> Iterator[bytes]:
        walk = Walk(reference, feeds, threads)
        shares = [share_of(layer, len(feeds), _ROWS) for layer in layers]
        outputs = layer_outputs(reference, named(reference, layers), feeds, shares, threads)
        for done, (layer, given, one) in enumerate(zip(layers, outputs, shares, strict=True), 1):
            yield candidate(walk, layer, given, one)  # nothing of it is held here while it is run
            if progress is not None:
                progress("measuring", done, len(layers))

    samples = [Sample(str(i), dict(feed)) for i, feed in enumerate((feeds[_FOLD - 1 :: _FOLD] or feeds)[:_HEARD_ON])]
    heard = measure_candidates(reference.SerializeToString(), candidates(), samples, threads=threads)
    noise = [10 ** (-one.typical_db / 10) for one in heard]
    return [
        Curve(layer.size, _SPARSITIES, tuple(noise[i] * e / max(errors[i][_HEARD_AT], 1e-30) for e in errors[i]))
        for i, layer in enumerate(layers)
    ]


def _errors(
    walk: Walk,
    layer: Prunable,
    x: NDArray[np.float32],
    starts: NDArray[np.int64],
    pattern: Pattern,
    keep_zeros: bool,
) -> tuple[list[float], dict[str, NDArray[np.float32]]]:
    """The layer's errors at _SPARSITIES, and its constants at one of them."""
    stored = walk.constant(layer.weight)
    order = layer.order(pattern)
    weight = layer.form.table(stored)[:, :, order]
    x = x[:, :, order]
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean if layer.bias else x
    sizes = np.diff(starts, append=x.shape[1])
    held_out = np.repeat(np.arange(len(sizes)) % _FOLD == _FOLD - 1, sizes)
    if len(sizes) < _FOLD:
        held_out[:] = True
    one, other = centred[:, held_out if len(sizes) < _FOLD else ~held_out], centred[:, held_out]
    fixed = weight == 0 if keep_zeros else None
    found, changed = [], dict[str, NDArray[np.float32]]()
    for i, (left, error) in enumerate(_by_sparsity(weight, one, other, layer.size, pattern, fixed)):
        found.append(error)
        if i == _HEARD_AT:
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
    """The weight [G, O, K] at each of _SPARSITIES, learned from rows x [G, N, K], and its error on other rows.

    Without what no rows can teach, that are not finite or too large to square: then by magnitude alone.
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
    """`obs.inverse_factor` of what each block of columns reads; none where that is not finite."""
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
    """The weight at each of _SPARSITIES, by magnitude, and the energy that has gone."""
    energy = np.square(weight, dtype=np.float64)
    for sparsity in _SPARSITIES:
        lowest = lowest_scores(energy.reshape(-1, weight.shape[2]), pattern, int(sparsity * size))
        gone = lowest.reshape(weight.shape) | fixed
        yield np.where(gone, np.float32(0), weight), float(energy[gone].sum())
