"""Let a network that was cut learn its answers back, layer by layer, from what the uncut one gives.

The cut network walks over the samples. At every layer the inputs are its own, with all layers before fitted, and the
outputs wanted are the uncut network's (the asymmetric form: GPTAQ, Li et al. 2025, section 3). Where the output is only
added to something, the sum is what is wanted, so that a layer makes up for the other branch too. Weights by ridge
regression, then the bias behind the activation. A weight that is zero stays so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.channels.layer_inputs import Layer, layers_of
from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.activation import Activations
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.layer_walk import Walk
from onnxshot.execution.parallel import in_order
from onnxshot.graph import Constant, Model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.graph.proto_copies import with_outputs
from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.finite import finite
from onnxshot.maths.ridge_regression import Moments, best_strength, ridge
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.settings import Progress

HELD = 640 << 20
"""Bytes of tensors that the walk may hold: it is of as many samples as that takes."""
_WANTED = 96 << 20  # bytes of the uncut network's outputs that are held at once, of as many layers as that takes
_ROWS = 12288  # values of every output that a layer is fitted on, at most
_ROW_BYTES = 48 << 20  # what a layer reads for them, at most
_MOST_COLUMNS = 3072  # inputs of one output: of more, only the bias is fitted
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in second moments, as they are tried
_LEFT_OUT = 4  # every so many-th sample is left out of a fit, to see by it how far weights may move

Kept = Mapping[str, NDArray[np.bool_]]


def refit(
    reference: ModelProto,
    cut: ModelProto,
    kept: Kept,
    feeds: Feeds,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """New values of the cut network's weights and biases, by name.

    reference: the uncut network, with the same node names. kept: which of its output channels are left, by layer; all
    where it is not named. Held at any time: both networks, HELD bytes of tensors, and of one layer its rows and their
    second moments. Raises ModelError where a network does not run.
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
        fitted = _fit(job.layer, student, x, samples, other, activations.behind(job.target))
        if not finite(*fitted.values()):
            fitted = {}  # the layer stays as it was cut
        for name, value in fitted.items():
            student.set(name, value)
        found |= fitted
        if progress is not None:
            progress("fit layers", done, len(jobs))
    return found


def apply(model: Model, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Give a model's constants new values."""
    for node in model.graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if isinstance(tensor, Constant) and tensor.name in values:
                node.inputs[slot] = Constant(tensor.name, values[tensor.name])


@dataclass(frozen=True, slots=True)
class _Job:
    """A layer, the tensor it is to make right, and what the network adds to its output to make that ("": nothing).

    share: positions of every sample that it is fitted on.
    """

    layer: Layer
    target: str
    other: str
    share: int = 1


def _share(layer: Layer, samples: int) -> int:
    rows = min(_ROWS, _ROW_BYTES // (4 * layer.groups * layer.columns))
    return max(1, -(-rows // samples))


def _jobs(model: ModelProto, layers: Mapping[str, Layer]) -> list[_Job]:
    """The layers in order, each with its target."""
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
            # What is not yet fitted must not run before it is.
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
    """What each target is in the uncut network, at the positions that are fitted on; per sample."""
    reference = with_fixed_randomness(reference)
    sizes = {t.name: t.dims for t in reference.graph.initializer}
    start = 0
    while start < len(jobs):
        end, total = start, 0
        while end < len(jobs) and (end == start or total < _WANTED):
            total += 4 * jobs[end].share * len(feeds) * max(sizes.get(jobs[end].layer.weight, (1,)))
            end += 1
        part = jobs[start:end]
        runner = Runner(with_outputs(reference, [job.target for job in part]), threads=1, inner=True)

        def taken(
            numbered: tuple[int, Mapping[str, NDArray[Any]]], runner: Runner = runner, part: Sequence[_Job] = part
        ) -> list[NDArray[np.float32]]:
            number, feed = numbered
            values = runner.run(feed)
            return [job.layer.outputs(values[job.target], job.share, number) for job in part]

        samples = list(in_order(taken, enumerate(feeds), threads))
        for i in range(len(part)):
            yield [sample[i] for sample in samples]
        start = end


def _fit(
    layer: Layer,
    student: Walk,
    x: Sequence[NDArray[np.float32]],
    wanted: Sequence[NDArray[np.float32]],
    other: NDArray[np.float32] | None,
    behind: Any,
) -> dict[str, NDArray[np.float32]]:
    """New weight and bias of a layer. x: rows [N, G, K] per sample; wanted [N, O] per sample, with `other` in it."""
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
        # The mean before the activation first: the steps behind it are short where most is cut off.
        bias = (target - got).mean(axis=0, dtype=np.float64) if layer.weight in found else bias
        learned = corrected_bias(target, got, bias, behind, starts)
        found[layer.bias] = learned.astype(np.float32).reshape(old.shape)
    return found


def _given(rows: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs [N, O] without bias."""
    made: NDArray[np.float32] = (rows.transpose(1, 0, 2) @ table.transpose(0, 2, 1)).transpose(1, 0, 2)
    return made.reshape(len(rows), -1)


def _change(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    held_out: NDArray[np.bool_],
    gone: NDArray[np.bool_],
    *,
    centred: bool,
) -> NDArray[np.floating] | None:
    """What to add to the weight [G, O, K]; None where samples that are left out of the fit do not like it.

    gone: where nothing is added.
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
        # The ridge's error is quadratic about what it finds: least under the mask is least by these moments.
        return optimal_brain_surgeon.refit(found.astype(np.float32), moments.damped(strength).astype(np.float32), gone)

    rows, wanted = x.transpose(1, 0, 2), residual.transpose(1, 0, 2)
    learn, check = (Moments.of(rows[:, part], wanted[:, part]) for part in (~held_out, held_out))
    nothing = np.zeros_like(learn.yx)
    strength = best_strength(learn, check, nothing, _STRENGTHS, fitted)
    return None if strength is None else fitted(learn + check, nothing, strength)


def _affordable(model: ModelProto, feeds: Feeds) -> int:
    """How many samples fit into HELD: what is alive of one at the widest place of the network, as float32."""
    shapes = concrete_shapes(Model(model), {name: np.shape(values) for name, values in feeds[0].items()})
    last = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    alive = {i.name: 4 * math.prod(shapes.get(i.name, ())) for i in model.graph.input}
    most = 1
    for i, node in enumerate(model.graph.node):
        alive |= {name: 4 * math.prod(shapes.get(name, ())) for name in node.output}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return max(1, min(len(feeds), HELD // most))
