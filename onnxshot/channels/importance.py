"""Rank the channels of every group by the requested importance, and set up the allocation for the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxshot.channels.activation_scores import activation_scores
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.candidate_models import CandidateBuilder
from onnxshot.channels.costs import macs_cost, params_cost
from onnxshot.channels.error_importance import ErrorImportance
from onnxshot.channels.groups import Group
from onnxshot.channels.layer_times import latency_cost
from onnxshot.channels.removal_curve import RemovalCurve, curves_from_scores
from onnxshot.channels.stage_seconds import timed
from onnxshot.channels.weight_scores import batchnorm_scores, norm_scores
from onnxshot.errors import UsageError
from onnxshot.graph.axis_coupling import Shape
from onnxshot.graph.skip import Skip
from onnxshot.maths.channel_removal import Floats
from onnxshot.recipes.stages import ShrinkStage

_LAYERS_TIME = 4  # seconds for timing all layers, as a multiple of the seconds for timing one model


def removal_curves(
    builder: CandidateBuilder, groups: Sequence[Group], asked: ShrinkStage, scales: Mapping[str, Floats]
) -> tuple[list[RemovalCurve], list[Skip]]:
    """Rank the channels of each group by the requested importance.

    Args:
        builder: The model, its samples and settings.
        groups: The eligible groups.
        asked: Importance ('auto' already resolved) and `multiple`.
        scales: |gamma| of the BatchNormalizations, see `batchnorm_scales`.

    Returns:
        A curve of each group that can be ranked, and the layers of the other groups with the reason.

    Raises:
        UsageError: Importance is 'batchnorm', and no group has a BatchNormalization.
    """
    axes, threads = builder.axes, builder.settings.threads
    if asked.importance == "batchnorm":
        return _by_batchnorm(groups, batchnorm_scores(axes, scales), asked.multiple)
    if asked.importance == "error":
        estimator = ErrorImportance(
            builder.lean, builder.feeds, builder.checks, threads, asked.multiple, builder.settings.progress,
            builder.note,
        )  # fmt: skip
        return estimator.curves(groups), []
    if asked.importance == "activation":
        scores = activation_scores(builder.lean, axes, builder.feeds, threads)
    else:
        scores = norm_scores(builder.model, axes, 1 if asked.importance == "l1" else 2)
    return curves_from_scores(groups, scores, asked.multiple), []


def _by_batchnorm(groups: Sequence[Group], scores: Floats, multiple: int) -> tuple[list[RemovalCurve], list[Skip]]:
    """Curves of the groups whose channels all have a BatchNormalization; the layers of the others are skipped."""
    with_scales = [group for group in groups if not np.isnan(scores[group.ids]).any()]
    if not with_scales:
        what = "importance is 'batchnorm', and no removable layer is followed by a BatchNormalization"
        raise UsageError(what, "the export may have folded it: export without folding, or give importance 'l2'")
    reason = "importance 'batchnorm' needs a BatchNormalization behind all its channels"
    others = [node for group in groups if group not in with_scales for node, _ in group.makers]
    skips = [Skip(node.label, node.op, reason) for node in others]
    return curves_from_scores(with_scales, scores, multiple), skips


def initial_allocation(
    builder: CandidateBuilder, curves: Sequence[RemovalCurve], asked: ShrinkStage, shapes: Mapping[str, Shape]
) -> Allocation:
    """The allocation that a search starts from: nothing removed, with the cost that the target limits.

    Layers are timed unless the target is a number of parameters. shapes: concrete shapes of the model's tensors.
    """
    model, axes = builder.model, builder.axes
    if asked.target_params is not None:
        return Allocation(curves, params_cost(model, axes), asked.multiple, axes.count)
    with timed(builder.timings, "time layers"):
        times = latency_cost(
            builder.lean, axes, shapes, threads=builder.settings.threads,
            seconds=_LAYERS_TIME * builder.settings.bench_seconds,
        )  # fmt: skip
    if asked.target_latency is not None:
        return Allocation(curves, times, asked.multiple, axes.count)
    return Allocation(curves, macs_cost(model, axes, shapes), asked.multiple, axes.count, times)
