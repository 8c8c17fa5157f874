"""Importance 'activation': score channels by the weights that read them and their mean square on samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.channels.error_importance import in_axis
from onnxshot.channels.shown_tensors import shown
from onnxshot.execution.layer_rows import Feeds
from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.channel_removal import Floats


def activation_scores(model: ModelProto | LeanModel, axes: Axes, feeds: Feeds, threads: int) -> Floats:
    """Score every channel by |W_j|^2 E[x_j^2], normalized per layer and summed over the layers that read it.

    This is the energy that channel j brings into a layer if channels are independent. It is the metric of Wanda
    (Sun et al. 2024, eq. 1: the magnitude of a weight times the norm of its input), squared and summed over the weights
    that read channel j.

    Args:
        model: The model that `axes` describes.
        axes: Channel numbers of every tensor axis.
        feeds: Samples to run.
        threads: Samples that run at a time.

    Returns:
        Scores [axes.count], float64.

    Memory: one value per channel and layer, plus the layer inputs of the samples that run at a time.
    """
    places = {node: _read_by(node, axes) for node, _ in axes.read}
    distinct = dict.fromkeys(places.values())

    def squared(_: int, values: Mapping[str, NDArray[Any]]) -> dict[tuple[str, int], tuple[Floats, int]]:
        return {place: _squares(values[place[0]], place[1]) for place in distinct if place[0] in values}

    sums: dict[tuple[str, int], Floats] = {}
    counts = dict.fromkeys(places.values(), 0)
    for _, sample in shown(LeanModel.of(model), (name for name, _ in distinct), feeds, threads, squared):
        for place, (squares, count) in sample.items():
            sums[place] = sums.get(place, 0.0) + squares
            counts[place] += count
    scores = np.zeros(axes.count)
    for node, (name, axis) in places.items():
        energy = _weights_by_input(node) * sums[name, axis] / counts[name, axis]
        np.add.at(scores, axes.of[name][axis], energy / max(float(energy.sum()), np.finfo(float).tiny))
    return scores


def _read_by(node: Node, axes: Axes) -> tuple[str, int]:
    """(name, channel axis) of the tensor that a layer multiplies by its weight."""
    name = node.inputs[0].name
    return name, 1 if node.op in ("Conv", "ConvTranspose") else max(axes.of[name])


def _squares(x: NDArray[np.floating], axis: int) -> tuple[Floats, int]:
    """(Sum of squares of each channel [C], number of values per channel)."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    return np.square(rows, dtype=np.float64).sum(axis=0), len(rows)


def _weights_by_input(node: Node) -> Floats:
    """Sum of squared weights per input channel [C]; for a grouped Conv, over the channels of all groups."""
    weight = node.inputs[1]
    assert isinstance(weight, Constant)
    squares = np.square(weights.read(weight), dtype=np.float64)
    if node.op == "Conv":
        # [O, I/g, *k]: the outputs of a group read the inputs of that group.
        groups = squares.reshape(int(node.attrs.get("group", 1)), -1, *squares.shape[1:])
        return np.asarray(groups.sum(axis=(1, *range(3, groups.ndim))).reshape(-1))
    axis = in_axis(node, squares.ndim)
    return np.asarray(squares.sum(axis=tuple(i for i in range(squares.ndim) if i != axis)))
