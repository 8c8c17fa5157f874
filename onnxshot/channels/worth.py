"""What groups are worth by the importance that was asked for, and what cutting them saves by the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxshot.channels.activation_scores import activation_scores
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.cut_model import Cutter
from onnxshot.channels.groups import Group
from onnxshot.channels.importance import Curve, batchnorm_scores, norm_scores, score_curves
from onnxshot.channels.importance_by_data import Weigher
from onnxshot.channels.layer_times import timed, times_of
from onnxshot.channels.savings import macs_of, params_of
from onnxshot.errors import UsageError
from onnxshot.graph.axis_coupling import Shape
from onnxshot.graph.skip import Skip
from onnxshot.maths.channel_removal import Floats
from onnxshot.recipes.stages import ShrinkStage

_TABLE = 4  # times as long as one model is, all layers are timed: that shows where a cut saves time


def curves_of(
    cutter: Cutter, groups: Sequence[Group], asked: ShrinkStage, scales: Mapping[str, Floats]
) -> tuple[list[Curve], list[Skip]]:
    """A curve of each group that can be weighed, and the layers of the others, with the reason.

    asked: resolved. scales: of BatchNormalizations, see `batchnorm_scales`. Raises UsageError where there are none and
    they are asked for.
    """
    model, axes, threads = cutter.model, cutter.axes, cutter.settings.threads
    if asked.importance == "batchnorm":
        return _by_batchnorm(groups, batchnorm_scores(axes, scales), asked.multiple)
    if asked.importance == "error":
        weigher = Weigher(
            cutter.reference, cutter.feeds, cutter.checks, threads, asked.multiple, cutter.settings.progress
        )
        return weigher.curves(groups), []
    if asked.importance == "activation":
        scores = activation_scores(cutter.reference, axes, cutter.feeds, threads)
    else:
        scores = norm_scores(model, axes, 1 if asked.importance == "l1" else 2)
    return score_curves(groups, scores, asked.multiple), []


def _by_batchnorm(groups: Sequence[Group], scores: Floats, multiple: int) -> tuple[list[Curve], list[Skip]]:
    """Of the groups whose channels all have a scale."""
    with_scales = [group for group in groups if not np.isnan(scores[group.ids]).any()]
    if not with_scales:
        what = "importance is 'batchnorm', and no BatchNormalization stands behind layers that can be cut"
        raise UsageError(what, "it may be folded into them: export without that, or give importance 'l2'")
    reason = "not all its channels have a BatchNormalization, which importance 'batchnorm' asks for"
    others = [node for group in groups if group not in with_scales for node, _ in group.makers]
    skips = [Skip(node.label, node.op, reason) for node in others]
    return score_curves(with_scales, scores, multiple), skips


def nothing_cut(cutter: Cutter, curves: Sequence[Curve], asked: ShrinkStage, shapes: Mapping[str, Shape]) -> Allocation:
    """Where the search for a target starts; layers are timed where time counts. shapes: of the model's tensors."""
    model, axes = cutter.model, cutter.axes
    if asked.target_params is not None:
        return Allocation(curves, params_of(model, axes), asked.multiple, axes.count)
    with timed(cutter.timings, "time layers"):
        times = times_of(
            cutter.reference, axes, shapes, threads=cutter.settings.threads,
            seconds=_TABLE * cutter.settings.bench_seconds,
        )  # fmt: skip
    if asked.target_latency is not None:
        return Allocation(curves, times, asked.multiple, axes.count)
    return Allocation(curves, macs_of(model, axes, shapes), asked.multiple, axes.count, times)
