"""What channels are worth by the weights that read them and by how large they are on samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.channels.importance_by_data import in_axis
from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.parallel import in_order
from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.proto_copies import with_outputs
from onnxshot.maths.channel_removal import Floats
from onnxshot.runtimes.ort_runtime import Feed, Runner


def activation_scores(proto: ModelProto, axes: Axes, feeds: Feeds, threads: int) -> Floats:
    """What each number is worth [count]: |W_j|^2 E[x_j^2], as a share of its layer's sum, summed over the layers.

    Wanda (Sun et al. 2024, eq. 1: a weight's magnitude times the norm of what it multiplies), squared and summed over
    the weights that read channel j: the energy that it brings into the layer, were channels independent. proto: the
    model that the axes are of. Held: of each layer that reads channels, a value for each; and of every sample what the
    layers read.
    """
    places = {node: _read_by(node, axes) for node, _ in axes.read}
    given = {i.name for i in proto.graph.input}
    names = dict.fromkeys(name for name, _ in places.values() if name not in given)
    runner = Runner(with_outputs(with_fixed_randomness(proto), names), threads=1, inner=True)

    def squared(feed: Feed) -> dict[tuple[str, int], tuple[Floats, int]]:
        values = {**feed, **runner.run(feed)}
        return {place: _squares(values[place[0]], place[1]) for place in places.values()}

    sums: dict[tuple[str, int], Floats] = {}
    counts = dict.fromkeys(places.values(), 0)
    for sample in in_order(squared, feeds, threads):
        for place, (squares, count) in sample.items():
            sums[place] = sums.get(place, 0.0) + squares
            counts[place] += count
    scores = np.zeros(axes.count)
    for node, (name, axis) in places.items():
        worth = _weights_by_input(node) * sums[name, axis] / counts[name, axis]
        np.add.at(scores, axes.of[name][axis], worth / max(float(worth.sum()), np.finfo(float).tiny))
    return scores


def _read_by(node: Node, axes: Axes) -> tuple[str, int]:
    """The tensor that a layer multiplies its weight with, and the axis of its channels."""
    name = node.inputs[0].name
    return name, 1 if node.op in ("Conv", "ConvTranspose") else max(axes.of[name])


def _squares(x: NDArray[np.floating], axis: int) -> tuple[Floats, int]:
    """(Sum of the squares of each channel [C], of how many values)."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    return np.square(rows, dtype=np.float64).sum(axis=0), len(rows)


def _weights_by_input(node: Node) -> Floats:
    """Sum of the squares of the weights that read each channel [C], of all groups of a Conv."""
    weight = node.inputs[1]
    assert isinstance(weight, Constant)
    squares = np.square(weights.read(weight).astype(np.float64))
    if node.op == "Conv":
        # [O, I/g, *k]: the outputs of a group read the inputs of that group.
        groups = squares.reshape(int(node.attrs.get("group", 1)), -1, *squares.shape[1:])
        return np.asarray(groups.sum(axis=(1, *range(3, groups.ndim))).reshape(-1))
    axis = in_axis(node, squares.ndim)
    return np.asarray(squares.sum(axis=tuple(i for i in range(squares.ndim) if i != axis)))
