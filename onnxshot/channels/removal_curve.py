"""The order in which the channels of a group are removed, and the loss after each removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshot.channels.groups import Group, in_steps, step_size
from onnxshot.graph.axis_coupling import Ids
from onnxshot.maths.channel_removal import Floats

MOST = 0.75
"""Largest share of a group that may be removed."""


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """Loss of a group as its channels are removed one after the other.

    Attributes:
        group: The group.
        order: Channel numbers in the order of removal [n].
        local: Squared error of the layers that read the group, as a share of their energy, after each removal [n + 1].
        loss: Squared error of the model outputs, as a share of their energy, after each removal [n + 1]. Equal to
            `local` where it was not measured.
    """

    group: Group
    order: Ids
    local: Floats
    loss: Floats


def curves_from_scores(groups: Sequence[Group], scores: Floats, multiple: int = 1) -> list[RemovalCurve]:
    """Curves of groups whose channels have fixed scores [count], independent of what else is removed."""
    curves = []
    for group in groups:
        order = group.ids[np.argsort(scores[group.ids], kind="stable")]
        order = in_steps(group, keep_one_per_tensor(group, order), step_size(group, multiple))
        order = order[: int(len(group.ids) * MOST)]
        local = np.concatenate([[0.0], np.cumsum(scores[order])])
        curves.append(RemovalCurve(group, order, local, local))
    return curves


def keep_one_per_tensor(group: Group, order: Ids) -> Ids:
    """The order without the channels whose removal would leave a tensor empty."""
    left = {part: len(part) for part in group.parts}
    found = []
    for i in order.tolist():
        mine = [part for part in left if i in part]
        if all(left[part] > 1 for part in mine):
            found.append(i)
            left |= {part: left[part] - 1 for part in mine}
    return np.asarray(found, np.int64)
