"""Layer-wise reconstruction after channels are removed: fit the remaining weights to the outputs of the full model.

Layers are fitted in graph order. The inputs of a layer are those of the pruned model with all earlier layers fitted.
Its targets are the outputs of the full model (asymmetric calibration: GPTAQ, Li et al. 2025, section 3). If the output
of a layer is only added to another tensor, the target is the sum, so that the layer also compensates for the error of
the other branch. Weights are fitted by ridge regression; then the bias is corrected with respect to the output of the
activation. Weights that are zero stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.channels.layer_inputs import Layer, layers_of
from onnxshot.execution.activation import Activations
from onnxshot.execution.layer_rows import Feeds, product
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph import Constant, Model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.finite import finite
from onnxshot.maths.ridge_regression import Moments, best_strength, ridge
from onnxshot.progress import Progress

HELD = 640 << 20
"""Bytes of activations held at a time; this limits the number of samples."""
_WANTED = 96 << 20  # bytes of target outputs held at a time; this limits how many layers are collected in one run
_ROWS = 12288  # output positions that a layer is fitted on, at most
_ROW_BYTES = 48 << 20  # bytes of the inputs at these positions, at most
_MOST_COLUMNS = 3072  # inputs per output; above, only the bias is fitted
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # candidate ridge strengths, relative to the mean second moment
_LEFT_OUT = 4  # every 4th sample is held out of a fit to choose the ridge strength

KeptChannels = Mapping[str, NDArray[np.bool_]]
"""Layer -> [O], which of its output channels remain; layers that keep all are absent."""


def reconstruct(
    reference: ModelProto,
    cut: ModelProto,
    kept: KeptChannels,
    feeds: Feeds,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Fit the weights and biases of a model whose channels were removed.

    A layer whose fit is not finite keeps its weights.

    Args:
        reference: The full model, with the same node names.
        cut: The model without the removed channels.
        kept: Remaining output channels of each layer that lost some.
        feeds: Samples.
        threads: Samples that run at a time.
        progress: Called as (stage, done, total).

    Returns:
        New float32 values by constant name.

    Raises:
        ModelError: One of the models does not run.

    Memory: both models, `HELD` bytes of activations, and the rows and second moments of one layer.
    """
    feeds = feeds[: _affordable(cut, feeds)]
    student, activations = Walk(cut, feeds, threads), Activations(reference)
    originals = layers_of(reference)
    jobs = _jobs(cut, {name: layer for name, layer in layers_of(cut).items() if name in originals})
    jobs = [replace(job, share=_share(job.layer, len(feeds))) for job in jobs]
    wanted = _wanted(reference, jobs, feeds, threads)
    found: dict[str, NDArray[np.float32]] = {}
    for done, (job, samples) in enumerate(zip(jobs, wanted, strict=True), 1):
        if job.layer.name in kept:
            samples = [y[:, kept[job.layer.name]] for y in samples]
        x = [job.layer.inputs(v, job.share, i) for i, v in enumerate(student.values(job.layer.input))]
        other = None
        if job.other:
            values = student.values(job.other)
            other = np.concatenate([job.layer.outputs(v, job.share, i) for i, v in enumerate(values)])
        fitted = _fit(job.layer, student, x, samples, other, activations.after(job.target))
        if not finite(*fitted.values()):
            fitted = {}  # the layer keeps its weights
        for name, value in fitted.items():
            student.set(name, value)
        found |= fitted
        if progress is not None:
            progress("fit layers", done, len(jobs))
    return found


def apply(model: Model, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Replace the values of a model's constants."""
    for node in model.graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if isinstance(tensor, Constant) and tensor.name in values:
                node.inputs[slot] = Constant(tensor.name, values[tensor.name])


@dataclass(frozen=True, slots=True)
class _Job:
    """A layer to fit.

    Attributes:
        layer: The layer.
        target: Name of the tensor that is matched to the full model.
        other: Name of the tensor that is added to the layer's output to give the target; "" if nothing is.
        share: Output positions of every sample that the layer is fitted on.
    """

    layer: Layer
    target: str
    other: str
    share: int = 1


def _share(layer: Layer, samples: int) -> int:
    """Output positions of every sample, within `_ROWS` and `_ROW_BYTES`."""
    rows = min(_ROWS, _ROW_BYTES // (4 * layer.groups * layer.columns))
    return max(1, -(-rows // samples))


def _jobs(model: ModelProto, layers: Mapping[str, Layer]) -> list[_Job]:
    """The layers in graph order, each with its target."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given_out = {value.name for value in model.graph.output}
    order = [node.name for node in model.graph.node if node.name in layers]
    found, pending = [], set(order)
    for name in order:
        layer = layers[name]
        users = readers.get(layer.output, [])
        target, other = layer.output, ""
        if len(users) == 1 and users[0].op_type == "Add" and layer.output not in given_out:
            others = [t for t in users[0].input if t != layer.output]
            # The other tensor must not depend on a layer that is not fitted yet.
            if len(others) == 1 and others[0] in makers and not _behind(others[0], makers) & pending:
                target, other = users[0].output[0], others[0]
        found.append(_Job(layer, target, other))
        pending.discard(name)
    return found


def _behind(name: str, makers: Mapping[str, NodeProto]) -> set[str]:
    """Names of all nodes that a tensor depends on."""
    found: set[str] = set()
    names = [name]
    while names:
        node = makers.get(names.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            names += node.input
    return found


def _wanted(
    reference: ModelProto, jobs: Sequence[_Job], feeds: Feeds, threads: int
) -> Iterator[list[NDArray[np.float32]]]:
    """The targets of each job in the full model, at the positions to fit on; one array per sample.

    The model runs once: it advances as far as the jobs whose targets fit, and goes on from there.
    """
    walk = Walk(reference, feeds, threads)
    sizes = {t.name: t.dims for t in reference.graph.initializer}
    start = 0
    while start < len(jobs):
        end, total = start, 0
        while end < len(jobs) and (end == start or total < _WANTED):
            total += 4 * jobs[end].share * len(feeds) * max(sizes.get(jobs[end].layer.weight, (1,)))
            end += 1
        part = jobs[start:end]
        rows: list[dict[int, NDArray[np.float32]]] = [{} for _ in part]
        for sample, taken in walk.visit({job.target for job in part}, partial(_rows_of, part)):
            for i, values in taken.items():
                rows[i][sample] = values
        for own in rows:
            yield [own[i] for i in range(len(feeds))]
        start = end


def _rows_of(
    jobs: Sequence[_Job], sample: int, values: Mapping[str, NDArray[Any]]
) -> tuple[int, dict[int, NDArray[np.float32]]]:
    """The sample, and the rows of the targets that are among the values, by number of the job."""
    return sample, {
        i: job.layer.outputs(values[job.target], job.share, sample)
        for i, job in enumerate(jobs)
        if job.target in values
    }


def _fit(
    layer: Layer,
    student: Walk,
    x: Sequence[NDArray[np.float32]],
    wanted: Sequence[NDArray[np.float32]],
    other: NDArray[np.float32] | None,
    behind: Any,
) -> dict[str, NDArray[np.float32]]:
    """Fit the weight and bias of a layer. x: [N, G, K] per sample. wanted: [N, O] per sample, the sum with `other`."""
    stored = student.constant(layer.weight)
    table = layer.table(stored)
    counts = np.asarray([len(rows) for rows in x])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows, target = np.concatenate(x), np.concatenate(wanted)
    old = student.constant(layer.bias) if layer.bias else None
    bias = np.zeros(target.shape[1]) if old is None else old.reshape(-1).astype(np.float64)
    rest = np.zeros_like(target) if other is None else other
    found: dict[str, NDArray[np.float32]] = {}
    if layer.columns <= _MOST_COLUMNS:
        residual = target - rest - bias.astype(np.float32) - _given(rows, table)
        residual = residual.reshape(len(rows), layer.groups, -1)
        held_out = np.repeat(np.arange(len(x)) % _LEFT_OUT == _LEFT_OUT - 1, counts)
        change = _change(rows, residual, held_out, table == 0, centred=old is not None)
        if change is not None:
            table = (table + change).astype(np.float32)
            found[layer.weight] = layer.stored(table)
    if old is not None:
        got = rest + _given(rows, table)
        # Start from the mean error before the activation: correction steps are short where the activation is flat.
        bias = (target - got).mean(axis=0, dtype=np.float64) if layer.weight in found else bias
        learned = corrected_bias(target, got, bias, behind, starts)
        found[layer.bias] = learned.astype(np.float32).reshape(old.shape)
    return found


def _given(rows: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs [N, O] of a layer without its bias."""
    return product(rows.transpose(1, 0, 2), table)


def _change(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    held_out: NDArray[np.bool_],
    gone: NDArray[np.bool_],
    *,
    centred: bool,
) -> NDArray[np.floating] | None:
    """The change of the weight [G, O, K]; None if every ridge strength increases the error on the held-out samples.

    gone: where the change must be zero.
    """
    if not held_out.any():
        return None
    if centred:
        x = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        residual = residual - residual.mean(axis=0, dtype=np.float64).astype(residual.dtype)

    def fitted(moments: Moments, weight: NDArray[np.floating], strength: float) -> NDArray[np.floating]:
        found = ridge(moments, weight, strength)
        if not gone.any():
            return found
        # The ridge error is quadratic around its minimum, so the constrained minimum follows from the same moments.
        return optimal_brain_surgeon.refit(found.astype(np.float32), moments.damped(strength).astype(np.float32), gone)

    rows, wanted = x.transpose(1, 0, 2), residual.transpose(1, 0, 2)
    learn, check = (Moments.of(rows[:, part], wanted[:, part]) for part in (~held_out, held_out))
    nothing = np.zeros_like(learn.yx)
    strength = best_strength(learn, check, nothing, _STRENGTHS, fitted)
    return None if strength is None else fitted(learn + check, nothing, strength)


def _affordable(model: ModelProto, feeds: Feeds) -> int:
    """Number of samples that fit into `HELD`, by the peak size of one sample's live activations in float32."""
    shapes = concrete_shapes(Model(model), {name: np.shape(values) for name, values in feeds[0].items()})
    last = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    alive = {i.name: 4 * math.prod(shapes.get(i.name, ())) for i in model.graph.input}
    most = 1
    for i, node in enumerate(model.graph.node):
        alive |= {name: 4 * math.prod(shapes.get(name, ())) for name in node.output}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return max(1, min(len(feeds), HELD // most))
