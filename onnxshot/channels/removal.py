"""The channels and branches that are removed from a model, and their form in a record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.channels.branches import Branch
from onnxshot.channels.eligible import Eligible
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.graph.axis_coupling import Axes, Ids

_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_HINT = "the record was edited, or another version wrote it: use the original record with the version that wrote it"


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """What is removed from a model.

    Attributes:
        branches: Residual branches that are removed as a whole.
        alive: [count] whether each channel remains. The channels inside a removed branch do not remain.
    """

    branches: tuple[Branch, ...]
    alive: NDArray[np.bool_]

    @property
    def removed(self) -> frozenset[int]:
        """Numbers of the channels that do not remain."""
        return frozenset(np.flatnonzero(~self.alive).tolist())

    def to_record(self, axes: Axes) -> dict[str, Any]:
        """Return the removal as a record stores it.

        Returns:
            `branches`: names of the removed branches. `channels`: layer -> its removed output channels, such as
            '0-3 7'. Channels that several layers share are listed for the first of these layers only.
        """
        left = set(self.removed).difference(*(branch.ids.tolist() for branch in self.branches))
        channels = {}
        for node, ids in axes.made:
            if left.intersection(ids.tolist()):
                channels[node.label] = spans(np.flatnonzero(~self.alive[ids]))
                left.difference_update(ids.tolist())
        return {"branches": [branch.name for branch in self.branches], "channels": channels}


def nothing(axes: Axes) -> Removal:
    """The removal of nothing."""
    return Removal((), np.ones(axes.count, bool))


def removal_from_record(values: Mapping[str, Any], axes: Axes, eligible: Eligible) -> Removal:
    """Read a removal that `Removal.to_record` returned for the same model.

    Raises:
        UsageError: The record is malformed, or names channels or branches that are not eligible.
    """
    names, channels = values.get("branches"), values.get("channels")
    if not isinstance(names, list) or not isinstance(channels, Mapping):
        raise UsageError(f"decided is {shown(values)}, without branches and channels", _HINT)
    known = {branch.name: branch for branch in eligible.branches}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"decided.branches has {shown(name)}, which is no branch that can be removed", _HINT)
    branches = tuple(known[name] for name in names)
    alive, layers = np.ones(axes.count, bool), {node.label: ids for node, ids in axes.made}
    for label, text in channels.items():
        where = f"decided.channels[{shown(label)}]"
        if label not in layers:
            raise UsageError(f"{where} names no layer that produces channels", _HINT)
        alive[layers[label][positions(text, len(layers[label]), where)]] = False
    for branch in branches:
        alive[branch.ids] = False
    free = [*(group.ids for group in eligible.groups), *(branch.ids for branch in branches)]
    refused = np.setdiff1d(np.flatnonzero(~alive), np.concatenate(free) if free else np.zeros(0, np.int64))
    if len(refused):
        raise UsageError(f"decided.channels has {len(refused)} channels that cannot be removed", _HINT)
    return Removal(branches, alive)


def recorded_samples(values: Mapping[str, Any]) -> int:
    """Number of samples that the recorded run used. Raises UsageError for a malformed number."""
    samples = values.get("samples")
    if type(samples) is not int or samples < 0:
        raise UsageError(f"decided.samples is {shown(samples)}", _HINT)
    return samples


def spans(numbers: Ids) -> str:
    """Format sorted numbers as text: [0, 1, 2, 7] becomes '0-2 7'."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def positions(text: object, count: int, where: str) -> list[int]:
    """Parse the text of `spans`. Raises UsageError, which names `where`, for a number that is not below `count`."""
    found: list[int] = []
    for part in text.split() if isinstance(text, str) else [""]:
        span = _SPAN.fullmatch(part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span is not None else (0, -1)
        if not first <= last < count:
            raise UsageError(f"{where} is {shown(text)}, and the layer produces {count} channels", _HINT)
        found += range(first, last + 1)
    return found
