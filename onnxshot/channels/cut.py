"""What is cut out of a model: as numbers of its axes, and by the names that a record holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.channels.branches import Branch
from onnxshot.channels.eligible import Choice
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.graph.axis_coupling import Axes, Ids

_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_HINT = "it was changed by hand, or is of another version: take the one the run wrote, and its version"


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What a model is made without.

    Attributes:
        branches: left out whole.
        alive: [count] whether the channels of each number stay; those made on a branch that is left out do not.
    """

    branches: tuple[Branch, ...]
    alive: NDArray[np.bool_]

    @property
    def removed(self) -> frozenset[int]:
        """Numbers of the channels that go."""
        return frozenset(np.flatnonzero(~self.alive).tolist())

    def named(self, axes: Axes) -> dict[str, Any]:
        """As a record holds it: names of branches, and layer -> which of its output channels go, such as '0-3 7'.

        Channels of other layers that are one and the same go with them, so these layers are not there.
        """
        left = set(self.removed).difference(*(branch.ids.tolist() for branch in self.branches))
        channels = {}
        for node, ids in axes.made:
            if left.intersection(ids.tolist()):
                channels[node.label] = spans(np.flatnonzero(~self.alive[ids]))
                left.difference_update(ids.tolist())
        return {"branches": [branch.name for branch in self.branches], "channels": channels}


def cut_of(values: Mapping[str, Any], axes: Axes, choice: Choice) -> Cut:
    """The cut that `Cut.named` gave, for the same model. Raises UsageError where it is none of what may be cut."""
    names, channels = values.get("branches"), values.get("channels")
    if not isinstance(names, list) or not isinstance(channels, Mapping):
        raise UsageError(f"decided is {shown(values)}, without branches and channels", _HINT)
    known = {branch.name: branch for branch in choice.branches}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"decided.branches has {shown(name)}, which is no branch to leave out", _HINT)
    branches = tuple(known[name] for name in names)
    alive, layers = np.ones(axes.count, bool), {node.label: ids for node, ids in axes.made}
    for label, text in channels.items():
        where = f"decided.channels[{shown(label)}]"
        if label not in layers:
            raise UsageError(f"{where} is of no layer that makes channels", _HINT)
        alive[layers[label][positions(text, len(layers[label]), where)]] = False
    for branch in branches:
        alive[branch.ids] = False
    free = [*(group.ids for group in choice.groups), *(branch.ids for branch in branches)]
    refused = np.setdiff1d(np.flatnonzero(~alive), np.concatenate(free) if free else np.zeros(0, np.int64))
    if len(refused):
        raise UsageError(f"decided.channels has {len(refused)} channels that must stay", _HINT)
    return Cut(branches, alive)


def samples_of(values: Mapping[str, Any]) -> int:
    """How many of its samples, the first ones, a run was given to learn from. Raises UsageError where that is none."""
    samples = values.get("samples")
    if type(samples) is not int or samples < 0:
        raise UsageError(f"decided.samples is {shown(samples)}", _HINT)
    return samples


def spans(numbers: Ids) -> str:
    """Numbers in rising order as text: [0, 1, 2, 7] is '0-2 7'."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def positions(text: object, count: int, where: str) -> list[int]:
    """The numbers of such a text. Raises UsageError where one is not below the count; where: it is called so."""
    found: list[int] = []
    for part in text.split() if isinstance(text, str) else [""]:
        span = _SPAN.fullmatch(part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span is not None else (0, -1)
        if not first <= last < count:
            raise UsageError(f"{where} is {shown(text)}, and the layer makes {count} channels", _HINT)
        found += range(first, last + 1)
    return found
