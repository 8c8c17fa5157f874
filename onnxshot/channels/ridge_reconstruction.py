"""Layer-wise reconstruction after channels are removed: fit the remaining weights to the outputs of the full model.

Layers are fitted in graph order. The inputs of a layer are those of the pruned model with all earlier layers fitted.
Its targets are the outputs of the full model (asymmetric calibration: GPTAQ, Li et al. 2025, section 3). If the output
of a layer is only added to another tensor, the target is the sum, so that the layer also compensates for the error of
the other branch. Weights are fitted by ridge regression; then the bias is corrected with respect to the output of the
activation. Weights that are zero stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.channels.layer_fit import RowsOfOutputs, fit, most_rows, output_pieces
from onnxshot.channels.layer_inputs import Layer, layers_of, whole_columns
from onnxshot.execution.activation import Activations
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph import Constant, Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import concrete_shapes
from onnxshot.maths.finite import finite
from onnxshot.progress import Progress
from onnxshot.runtimes.spool import Spool

# These bound the work, and are the same at every memory budget, as results do not depend on it.
_LEARNED = 640 << 20  # bytes of the activations of all samples that a fit learns from, at most
_STEP = 96 << 20  # bytes of target outputs that one step of the full model gives, at most

KeptChannels = Mapping[str, NDArray[np.bool_]]
"""Layer -> [O], which of its output channels remain; layers that keep all are absent."""


def reconstruct(
    reference: ModelProto | LeanModel,
    cut: ModelProto | LeanModel,
    kept: KeptChannels,
    feeds: Feeds,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    keep: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda values: values,
    note: Callable[[str], None] | None = None,
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
        keep: Called with each new value; may move it out of memory.
        note: Called with what the user should know.

    Returns:
        New float32 values by constant name.

    Raises:
        ModelError: One of the models does not run.

    Memory: what two walks hold, the rows and second moments of one layer, and what `keep` returns.
    """
    full, less = LeanModel.of(reference), LeanModel.of(cut)
    few = _learned(less, feeds)
    if few < len(feeds) and note is not None:
        note(f"fitted to {few} of {len(feeds)} samples: the activations of all take over {_LEARNED >> 20} MiB")
    feeds = feeds[:few]
    student, activations = Walk(less, feeds, threads), Activations(full.proto)
    originals = layers_of(full)
    jobs = _jobs(less.proto, {name: layer for name, layer in layers_of(less).items() if name in originals})
    jobs = [replace(job, share=_share(job.layer, len(feeds))) for job in jobs]
    _tell_blocks([job.layer for job in jobs], note)
    found: dict[str, NDArray[np.float32]] = {}
    for done, (job, wanted) in enumerate(zip(jobs, _wanted(full, jobs, kept, feeds, threads), strict=True), 1):
        x = [job.layer.inputs(v, job.share, i) for i, v in enumerate(student.values(job.layer.input))]
        other = _other(job, student.values(job.other)) if job.other else None
        weight = student.constant(job.layer.weight)
        bias = student.constant(job.layer.bias) if job.layer.bias else None
        fitted = fit(job.layer, weight, bias, x, wanted, other, activations.after(job.target))
        if not finite(*fitted.values()):
            fitted = {}  # the layer keeps its weights
        fitted = {name: keep(value) for name, value in fitted.items()}
        for name, value in fitted.items():
            student.set(name, value)
        found |= fitted
        if progress is not None:
            progress("fit layers", done, len(jobs))
    return found


def _tell_blocks(layers: Sequence[Layer], note: Callable[[str], None] | None) -> None:
    """Say which layers are fitted in blocks of inputs, and why."""
    wide = [layer for layer in layers if layer.columns > whole_columns()]
    if wide and note is not None:
        more = f" and {len(wide) - 1} more layers" if len(wide) > 1 else ""
        note(
            f"{wide[0].name!r}{more}: the {wide[0].columns} inputs were fitted at most {whole_columns()} at a time, as "
            "the work goes with their cube and the second moments of all would take more than a share of the memory"
        )


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
    """Output positions of every sample that a layer is fitted on."""
    return max(1, -(-most_rows(layer) // samples))


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
    reference: LeanModel, jobs: Sequence[_Job], kept: KeptChannels, feeds: Feeds, threads: int
) -> Iterator[RowsOfOutputs]:
    """The targets of each job in the full model, at the positions to fit on, with the output channels that remain.

    The model runs once: it advances as far as the jobs whose targets fit, and goes on from there. What waits is written
    to a temporary file beyond `memory.held_bytes()`.
    """
    walk = Walk(reference, feeds, threads)
    start = 0
    while start < len(jobs):
        end, total = start, 0
        while end < len(jobs) and (end == start or total < _STEP):
            name = jobs[end].layer.weight
            width = max(reference.kind_of(name)[1] if reference.holds(name) else (1,))
            total += 4 * jobs[end].share * len(feeds) * width
            end += 1
        part = jobs[start:end]
        with Spool() as spool:

            def see(
                sample: int, values: Mapping[str, NDArray[Any]], part: Sequence[_Job] = part, spool: Spool = spool
            ) -> None:
                for i, job in enumerate(part):
                    if job.target in values:
                        rows = job.layer.outputs(values[job.target], job.share, sample)
                        rows = rows[:, kept[job.layer.name]] if job.layer.name in kept else rows
                        for piece in output_pieces(job.layer):
                            spool.put((i, piece.start, sample), rows[:, piece])

            walk.visit({job.target for job in part}, see)
            for i in range(len(part)):

                def piece_of(piece: slice, i: int = i, spool: Spool = spool) -> NDArray[np.float32]:
                    return np.concatenate([spool.get((i, piece.start, sample)) for sample in range(len(feeds))])

                yield piece_of
                for piece in output_pieces(part[i].layer):
                    for sample in range(len(feeds)):
                        spool.drop((i, piece.start, sample))
        start = end


def _other(job: _Job, values: Sequence[NDArray[Any]]) -> RowsOfOutputs:
    """Rows of the tensor that is added to a layer's output."""

    def piece_of(piece: slice) -> NDArray[np.float32]:
        return np.concatenate([job.layer.outputs(v, job.share, i)[:, piece] for i, v in enumerate(values)])

    return piece_of


def _learned(model: LeanModel, feeds: Feeds) -> int:
    """Number of samples within `_LEARNED`, by the peak size of one sample's live activations in float32."""
    shapes = concrete_shapes(model.to_graph(), {name: np.shape(values) for name, values in feeds[0].items()})
    last = {name: i for i, node in enumerate(model.proto.graph.node) for name in node.input}
    alive = {i.name: 4 * math.prod(shapes.get(i.name, ())) for i in model.proto.graph.input}
    most = 1
    for i, node in enumerate(model.proto.graph.node):
        alive |= {name: 4 * math.prod(shapes.get(name, ())) for name in node.output}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return max(1, min(len(feeds), _LEARNED // most))
