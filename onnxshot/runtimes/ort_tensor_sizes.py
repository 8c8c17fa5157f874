"""Shapes of a model's tensors on a sample, inferred if possible, else measured in one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from onnxshot import memory
from onnxshot.errors import ModelError
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import NodeMacs, Shape, Sizes, tensor_sizes
from onnxshot.runtimes.ort_profile import profiled
from onnxshot.runtimes.ort_runtime import Feed, Runner


def sizes_on(model: Model, feed: Feed | None, *, threads: int = 2) -> Sizes:
    """Shapes of all tensors on a sample, loops and branches included.

    The sample is run, once and without optimizations, only if a shape depends on more than the shapes of the inputs and
    small integer inputs. Shapes that the run does not show are left out; all are if it fails. A model with more than
    `memory.part_bytes()` of weights is run part by part, which does not show the shapes inside loops and branches.

    Args:
        model: The model.
        feed: Input arrays; None to take free dimensions as 1.
        threads: CPU threads of the run.
    """
    shapes = None if feed is None else {name: np.shape(values) for name, values in feed.items()}
    values = None if feed is None else {name: np.asarray(array) for name, array in feed.items()}
    found = tensor_sizes(model, shapes, values)
    work = found.work(model)
    if feed is None or all(row.exact for row in work):
        return found
    if model.weight_bytes() > memory.part_bytes():
        return _measured_in_parts(model, found, work, feed, threads)
    return _measured(model, found, feed, threads)


def _measured_in_parts(model: Model, found: Sizes, work: Iterable[NodeMacs], feed: Feed, threads: int) -> Sizes:
    """The shapes found, completed by those of a run in parts."""
    made = {t.name for node in model.graph.nodes for t in node.outputs if t.name}
    doubted = {t.name for row in work if not row.exact for t in (*row.node.inputs, *row.node.outputs)}
    names = sorted(made & (doubted | (made - found.shapes.keys())))
    shapes: dict[str, Shape] = {}
    try:
        runner = Runner(LeanModel.of(model).exposing(names), threads=threads, inner=True)
        for _, values in runner.events([feed], 1, names):
            shapes |= {name: array.shape for name, array in values.items()}
    except ModelError:
        return found
    return Sizes({**found.shapes, **shapes}, found.times, found.source)


def _measured(model: Model, found: Sizes, feed: Feed, threads: int) -> Sizes:
    """The shapes found, completed by those of a run."""
    nodes = [node for _, node in model.walk()]
    if len({node.name for node in nodes}) < len(nodes):
        return found  # the profile identifies nodes by name
    try:
        events, _ = profiled(LeanModel.of(model), feed, threads=threads)
    except ModelError:
        return found
    runs = Counter(event.node for event in events)
    by_name = {event.node: event for event in events}  # the last run of each node
    shapes: dict[str, Shape] = {}
    for node in nodes:
        event = by_name.get(node.name)
        for tensors, sizes in () if event is None else ((node.inputs, event.inputs), (node.outputs, event.outputs)):
            named = [t.name for t in tensors if t.name]
            if len(named) == len(sizes):
                shapes |= zip(named, sizes, strict=True)
    times = {node.label: runs[node.name] for node in nodes if node.label in found.times}
    return Sizes({**found.shapes, **shapes}, {**found.times, **times}, found.source)
