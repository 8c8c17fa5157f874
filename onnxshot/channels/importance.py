"""What each group of channels is worth by scores of its channels, such as norms: in which order to cut them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxshot.channels.groups import Group, chunk, in_chunks
from onnxshot.graph import Model, edit, weights
from onnxshot.graph.axis_coupling import Axes, Ids
from onnxshot.maths.channel_removal import Floats
from onnxshot.passes import linear_ops

MOST = 0.75
"""Share of a group that is cut at most."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A group, its channels in the order to cut them [n], and what the outputs lose after each [n + 1].

    local: squared error at the layers that read them, as a share of these layers' energy. loss: of the network's
    outputs, as a share of theirs; the same as local where it was not measured.
    """

    group: Group
    order: Ids
    local: Floats
    loss: Floats


def norm_scores(model: Model, axes: Axes, power: int) -> Floats:
    """What each number is worth by the norm of all weights that go with it [count].

    power: 1 for L1 (Li et al. 2017, section 3.1), 2 for L2. Each weight counts as a share of its tensor's norm, summed
    over the tensors a group is in (DepGraph, Fang et al. 2023, section 3.3).
    """
    scores = np.zeros(axes.count)
    for constant in model.constants():
        held = axes.of.get(constant.name, {})
        if held and constant.dtype.kind == "f" and len(constant.shape) >= 2:
            sizes = np.abs(weights.read(constant).astype(np.float64)) ** power
            for axis, ids in held.items():
                sums = sizes.sum(axis=tuple(i for i in range(sizes.ndim) if i != axis))
                np.add.at(scores, ids, sums / max(float(sums.sum()), np.finfo(float).tiny))
    return scores


def batchnorm_scales(model: Model) -> dict[str, Floats]:
    """|gamma| [C] of every BatchNormalization behind a Conv, ConvTranspose, Gemm or MatMul, by what that layer gives.

    To be asked before the model is normalized, which folds them; parameters must be constants by then.
    """
    found = {}
    for node in model.graph.nodes:
        if node.op == "BatchNormalization" and linear_ops.is_linear(edit.producer(node.inputs[0])):
            gamma = edit.constant_input(node, 1)
            if gamma is not None:
                found[node.inputs[0].name] = np.abs(gamma.astype(np.float64).reshape(-1))
    return found


def batchnorm_scores(axes: Axes, scales: Mapping[str, Floats]) -> Floats:
    """What each number is worth by |gamma|, summed over its layers [count]; NaN where none has a BatchNormalization.

    Scales of all layers are held against each other as they are (Network Slimming, Liu et al. 2017, section 3).
    """
    scores = np.full(axes.count, np.nan)
    for name, gamma in scales.items():
        ids = axes.of.get(name, {}).get(1)
        if ids is not None and len(ids) == len(gamma):
            scores[ids] = np.nan_to_num(scores[ids])
            np.add.at(scores, ids, gamma)
    return scores


def score_curves(groups: Sequence[Group], scores: Floats, multiple: int = 1) -> list[Curve]:
    """Curves of groups whose channels are worth what their numbers' scores [count] say, whatever else was cut."""
    curves = []
    for group in groups:
        order = group.ids[np.argsort(scores[group.ids], kind="stable")]
        order = in_chunks(group, leaving_one(group, order), chunk(group, multiple))
        order = order[: int(len(group.ids) * MOST)]
        local = np.concatenate([[0.0], np.cumsum(scores[order])])
        curves.append(Curve(group, order, local, local))
    return curves


def leaving_one(group: Group, order: Ids) -> Ids:
    """The order without what would be the last of a tensor."""
    left = {part: len(part) for part in group.parts}
    found = []
    for i in order.tolist():
        mine = [part for part in left if i in part]
        if all(left[part] > 1 for part in mine):
            found.append(i)
            left |= {part: left[part] - 1 for part in mine}
    return np.asarray(found, np.int64)
