"""Shapes of a model's tensors on a sample, inferred if possible, else measured in one run."""

from __future__ import annotations

from collections import Counter

import numpy as np

from onnxshot.errors import ModelError
from onnxshot.graph import Model
from onnxshot.graph.macs import Shape, Sizes, tensor_sizes
from onnxshot.runtimes.ort_profile import profiled
from onnxshot.runtimes.ort_runtime import IN_MEMORY, Feed

_LIMIT = 1_500_000_000  # bytes of a model above which it is not run: it would not fit one protobuf message


def sizes_on(model: Model, feed: Feed | None, *, threads: int = 2) -> Sizes:
    """Shapes of all tensors on a sample, loops and branches included.

    The sample is run, once and without optimizations, only if a shape depends on more than the shapes of the inputs and
    small integer inputs. Shapes that the run does not show are left out; all are if it fails.

    Args:
        model: The model.
        feed: Input arrays; None to take free dimensions as 1.
        threads: CPU threads of the run.
    """
    shapes = None if feed is None else {name: np.shape(values) for name, values in feed.items()}
    values = None if feed is None else {name: np.asarray(array) for name, array in feed.items()}
    found = tensor_sizes(model, shapes, values)
    if feed is None or all(row.exact for row in found.work(model)) or model.weight_bytes() > _LIMIT:
        return found
    return _measured(model, found, feed, threads)


def _measured(model: Model, found: Sizes, feed: Feed, threads: int) -> Sizes:
    """The shapes found, completed by those of a run."""
    nodes = [node for _, node in model.walk()]
    if len({node.name for node in nodes}) < len(nodes):
        return found  # the profile identifies nodes by name
    source = model.to_proto().SerializeToString()
    try:
        events, _ = profiled(source, feed, threads=threads, folder=None, what=IN_MEMORY)
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
