"""Coupled channels for structured pruning: which positions of which tensor axes can only be removed together.

Every position along an axis gets a number, and positions with the same number are coupled. The output channels of a
layer get new numbers. The operators behind it pass these on, couple them with others (an addition, a gate, a channel
shuffle), or freeze them, which means that they cannot be pruned (a model output, a normalization over them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS

Ids = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(slots=True)
class Axes:
    """The numbered positions of a graph's tensors and constants.

    Attributes:
        of: tensor name -> axis -> number of each position along the axis.
        fixed: number that cannot be pruned -> skip reason.
        made: (layer, numbers of its output channels [O]).
        read: (layer, numbers of its input channels [I], or [I / group] of one group of a Conv).
        heads: numbers of attention heads.
        count: how many numbers there are.
    """

    of: dict[str, dict[int, Ids]] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    made: list[tuple[Node, Ids]] = field(default_factory=list)
    read: list[tuple[Node, Ids]] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    count: int = 0


class Tracker:
    """Numbers the positions of all axes of a graph, node by node in topological order.

    The rules of `axis_rules`, one per operator, call its methods. A rule that does not support a node returns the
    reason, and then nothing that the node reads is pruned.

    Args:
        model: the model.
        shapes: tensor name -> concrete shape.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Shape]) -> None:
        self.model = model
        self._shapes = shapes
        self._found = Axes()
        self._parent: list[int] = []
        self._frozen: list[tuple[str, int | None, str]] = []  # resolved in `result`: axes may get numbers later

    def follow(self, node: Node, rules: Mapping[str, Callable[[Tracker, Node], str | None]]) -> None:
        """Number the positions of the node's outputs with the rule of its operator, or freeze its inputs."""
        rule = rules.get(node.op) if node.domain in STANDARD_DOMAINS else None
        if rule is None:
            reason: str | None = f"{node.op} {node.label!r} is not supported"
        elif any(self.shape(t) is None for t in (*node.inputs, *node.outputs) if t.name):
            reason = f"a shape of {node.op} {node.label!r} is unknown"
        else:
            reason = rule(self, node)
        if reason is not None:
            for tensor in node.inputs:
                self.freeze(tensor, None, reason)

    def result(self) -> Axes:
        """Return the numbered axes, with one number for all coupled positions."""
        for graph, node in self.model.walk():
            for tensor in node.inputs if graph is not self.model.graph else ():
                self.freeze(tensor, None, f"{node.op} {node.label!r} reads it in a subgraph")
        for graph in self.model.graphs():
            for tensor in graph.outputs:
                self.freeze(tensor, None, f"{tensor.name!r} is an output of the model")
        root = np.asarray([self._root(i) for i in range(len(self._parent))], np.int64)
        found = Axes(count=len(root), heads={int(root[i]) for i in self._found.heads})
        found.of = {name: {axis: root[ids] for axis, ids in axes.items()} for name, axes in self._found.of.items()}
        found.made = [(node, root[ids]) for node, ids in self._found.made]
        found.read = [(node, root[ids]) for node, ids in self._found.read]
        found.fixed = {int(root[i]): reason for i, reason in self._found.fixed.items()}
        for name, only, reason in self._frozen:
            for axis, ids in found.of.get(name, {}).items():
                if only is None or axis == only:
                    for i in np.unique(ids).tolist():
                        found.fixed.setdefault(i, reason)
        return found

    # ------------------------------------------------------------------ queries of rules

    def shape(self, tensor: Tensor) -> Shape | None:
        """Concrete shape of a tensor; None where it is unknown."""
        return tuple(tensor.shape) if isinstance(tensor, Constant) else self._shapes.get(tensor.name)

    def sizes(self, tensor: Tensor) -> Shape:
        """Concrete shape of a tensor of the node; `follow` has checked that it is known."""
        shape = self.shape(tensor)
        assert shape is not None, tensor.name
        return shape

    def ids(self, tensor: Tensor, axis: int) -> Ids | None:
        """Numbers of the positions along an axis; None where they have no numbers."""
        return self._found.of.get(tensor.name, {}).get(axis)

    def axes(self, tensor: Tensor) -> list[int]:
        """The axes whose positions have numbers."""
        return sorted(self._found.of.get(tensor.name, {}))

    # ------------------------------------------------------------------ results of rules

    def new_numbers(self, count: int, fixed: str = "") -> Ids:
        """Return `count` new numbers; `fixed` is the skip reason where they cannot be pruned."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        if fixed:
            self._found.fixed |= dict.fromkeys(range(first, first + count), fixed)
        return np.arange(first, first + count, dtype=np.int64)

    def number(self, tensor: Tensor, axis: int, ids: Ids) -> None:
        """Number an axis of a tensor, or couple its numbers with these. A single position is never pruned."""
        if len(ids) == 1:
            self._found.fixed[int(ids[0])] = f"it is the only channel of {tensor.name!r}"
        known = self.ids(tensor, axis)
        if known is None:
            self._found.of.setdefault(tensor.name, {})[axis] = ids
        else:
            self.couple(known, ids)

    def couple_constant(self, tensor: Tensor, axis: int, ids: Ids | None) -> None:
        """Couple the positions of a constant with these numbers; None freezes them."""
        if ids is None:
            self.freeze(tensor, axis, f"{tensor.name!r} is also read where its shape cannot change")
        else:
            self.number(tensor, axis, ids)

    def couple(self, a: Ids, b: Ids) -> None:
        """Couple two lists of numbers position by position."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self._parent[self._root(other)] = self._root(one)

    def freeze(self, tensor: Tensor, axis: int | None, reason: str) -> None:
        """Freeze the positions of a tensor along an axis, or along all axes (None)."""
        if tensor.name:
            self._frozen.append((tensor.name, axis, reason))

    def pass_on(self, source: Tensor, out: Tensor, axes: Mapping[int, int], reason: str) -> None:
        """Pass numbers from axes of `source` to axes of `out`; freeze the other numbered axes of `source`."""
        for axis in self.axes(source):
            ids = self.ids(source, axis)
            if axis in axes and ids is not None and self.sizes(out)[axes[axis]] == len(ids):
                self.number(out, axes[axis], ids)
            else:
                self.freeze(source, axis, reason)

    def record_outputs(self, node: Node, ids: Ids) -> None:
        """Record the numbers of a layer's output channels."""
        self._found.made.append((node, ids))

    def record_inputs(self, node: Node, ids: Ids) -> None:
        """Record the numbers of a layer's input channels, over which it sums."""
        self._found.read.append((node, ids))

    def record_heads(self, ids: Ids) -> None:
        """Record numbers of attention heads."""
        self._found.heads.update(ids.tolist())

    def representatives(self, ids: Ids) -> Ids:
        """One representative number for all positions that are coupled so far."""
        return np.asarray([self._root(i) for i in ids.ravel().tolist()], np.int64).reshape(ids.shape)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i


Rule = Callable[[Tracker, Node], str | None]
"""Follows one node; returns the reason where the node is not supported, else None."""


def freeze_other_axes(t: Tracker, node: Node) -> None:
    """Freeze all axes of the first input but the channel axis, 1."""
    for axis in t.axes(node.inputs[0]):
        if axis != 1:
            t.freeze(node.inputs[0], axis, f"{node.op} {node.label!r} computes across it")


def couple_operands(t: Tracker, parties: list[tuple[Tensor, int]], what: str) -> Ids | None:
    """Couple axes that are combined position by position, and return their numbers; None where one has no numbers.

    Args:
        t: the tracker.
        parties: (tensor, axis) of each operand; axes of size 1 broadcast and are ignored.
        what: operator and label of the node, for the skip reason.
    """
    wide = [(tensor, axis) for tensor, axis in parties if t.sizes(tensor)[axis] > 1]
    computed = [(tensor, axis) for tensor, axis in wide if not isinstance(tensor, Constant)]
    known = [ids for tensor, axis in computed if (ids := t.ids(tensor, axis)) is not None]
    if not known or len(known) < len(computed):
        for tensor, axis in wide:
            t.freeze(tensor, axis, f"{what} combines it with a tensor that cannot be pruned")
        return None
    for other in known[1:]:
        t.couple(known[0], other)
    for tensor, axis in wide:
        if isinstance(tensor, Constant):
            t.couple_constant(tensor, axis, known[0])
    return known[0]


def shape_parts(node: Node) -> list[tuple[Tensor, int]] | None:
    """Return where each entry of a Reshape's shape comes from, as (1-D tensor, index); None where that is unknown.

    Supported are a constant, and a Concat of constants and of single sizes that are computed.
    """
    given = node.inputs[1]
    if isinstance(given, Constant):
        return [(given, i) for i in range(given.shape[0])]
    maker = edit.producer(given)
    if maker is None or maker.op != "Concat":
        return None
    return [(part, i) for part in maker.inputs for i in range(part.shape[0] if isinstance(part, Constant) else 1)]


def constant_entry(part: tuple[Tensor, int]) -> int | None:
    """Return the value of an entry of `shape_parts`; None where it is computed."""
    tensor, place = part
    if not isinstance(tensor, Constant):
        return None
    values: NDArray[Any] = tensor.values
    return int(values.reshape(-1)[place])


def normal(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def given_axes(node: Node, slot: int, rank: int) -> Sequence[int] | None:
    """Return the axes of a node, from the attribute `axes` or a constant input; all if absent, None if computed."""
    if "axes" in node.attrs:
        found: Iterable[int] = node.attrs["axes"]
    elif slot >= len(node.inputs) or not node.inputs[slot].name:
        return list(range(rank))
    else:
        values = edit.constant_input(node, slot)
        if values is None:
            return None
        found = values.reshape(-1).tolist()
    return [normal(axis, rank) for axis in found]
