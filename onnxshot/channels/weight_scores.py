"""Importance 'l1', 'l2' and 'batchnorm': score channels by their weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxshot.graph import Model, edit
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.weight_pieces import row_blocks
from onnxshot.maths.channel_removal import Floats
from onnxshot.passes import linear_ops


def norm_scores(model: Model, axes: Axes, power: int) -> Floats:
    """Score every channel by the norm of all weights that belong to it [count].

    A weight counts as a share of the norm of its tensor. Shares are summed over all tensors that a group is in
    (DepGraph, Fang et al. 2023, section 3.3).

    Args:
        model: The model that `axes` describes.
        axes: Channel numbers of every tensor axis.
        power: 1 for the L1 norm (Li et al. 2017, section 3.1), 2 for the squared L2 norm.
    """
    scores = np.zeros(axes.count)
    for constant in model.constants():
        held = axes.of.get(constant.name, {})
        if held and constant.dtype.kind == "f" and len(constant.shape) >= 2:
            found = {axis: np.zeros(constant.shape[axis]) for axis in held}
            for start, block in row_blocks(constant):
                sizes = np.abs(block.astype(np.float64)) ** power
                for axis, sums in found.items():
                    rows = slice(start, start + len(block)) if axis == 0 else slice(None)
                    sums[rows] += sizes.sum(axis=tuple(i for i in range(sizes.ndim) if i != axis))
            for axis, ids in held.items():
                np.add.at(scores, ids, found[axis] / max(float(found[axis].sum()), np.finfo(float).tiny))
    return scores


def batchnorm_scales(model: Model) -> dict[str, Floats]:
    """|gamma| [C] of each BatchNormalization behind a Conv, ConvTranspose, Gemm or MatMul, by the name of its input.

    Call this before normalization folds the BatchNormalizations into the layers, and after constant folding: gamma must
    be a constant.
    """
    found = {}
    for node in model.graph.nodes:
        if node.op == "BatchNormalization" and linear_ops.is_linear(edit.producer(node.inputs[0])):
            gamma = edit.constant_input(node, 1)
            if gamma is not None:
                found[node.inputs[0].name] = np.abs(gamma.astype(np.float64).reshape(-1))
    return found


def batchnorm_scores(axes: Axes, scales: Mapping[str, Floats]) -> Floats:
    """Score every channel by |gamma|, summed over its layers [count]; NaN for channels without BatchNormalization.

    Scales of different layers are compared without normalization (Network Slimming, Liu et al. 2017, section 3).
    """
    scores = np.full(axes.count, np.nan)
    for name, gamma in scales.items():
        ids = axes.of.get(name, {}).get(1)
        if ids is not None and len(ids) == len(gamma):
            scores[ids] = np.nan_to_num(scores[ids])
            np.add.at(scores, ids, gamma)
    return scores
