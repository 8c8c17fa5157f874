"""Which positions of which tensor axes are one and the same: what is cut out of one must be cut out of all of them.

Positions of an axis are numbered. A layer's output channels get numbers of their own; whatever follows passes them on,
joins them (an addition, a gate, a shuffle), or forbids that they are cut (an output, a normalization over them).
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
        of: tensor name -> axis -> number of each position along it.
        fixed: numbers that cannot be cut -> why.
        made: (node, numbers of its output channels [O]).
        read: (node, numbers of what it multiplies its weight with [I], or of one conv group's [I/g]).
        heads: numbers that are heads of an attention.
        count: how many numbers there are.
    """

    of: dict[str, dict[int, Ids]] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    made: list[tuple[Node, Ids]] = field(default_factory=list)
    read: list[tuple[Node, Ids]] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    count: int = 0


class Tracker:
    """Follows the axes through a graph whose concrete shapes are known, node by node in order.

    Rules (`axis_rules`) call its methods. A rule that cannot follow a node returns the reason, and nothing that the
    node reads is cut.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Shape]) -> None:
        self.model = model
        self._shapes = shapes
        self._found = Axes()
        self._parent: list[int] = []
        self._frozen: list[tuple[str, int | None, str]] = []  # resolved at the end: numbers may come later

    def follow(self, node: Node, rules: Mapping[str, Callable[[Tracker, Node], str | None]]) -> None:
        """Number the positions of the node's outputs, as far as they follow from those of its inputs."""
        rule = rules.get(node.op) if node.domain in STANDARD_DOMAINS else None
        if rule is None:
            reason: str | None = f"{node.op} {node.label!r} is not followed"
        elif any(self.shape(t) is None for t in (*node.inputs, *node.outputs) if t.name):
            reason = f"a shape at {node.op} {node.label!r} is not known"
        else:
            reason = rule(self, node)
        if reason is not None:
            for tensor in node.inputs:
                self.freeze(tensor, None, reason)

    def result(self) -> Axes:
        """What was found, with one number for all positions that are the same."""
        for graph, node in self.model.walk():
            for tensor in node.inputs if graph is not self.model.graph else ():
                self.freeze(tensor, None, f"{node.op} {node.label!r} reads it in a subgraph")
        for graph in self.model.graphs():
            for tensor in graph.outputs:
                self.freeze(tensor, None, f"the model gives out {tensor.name!r}")
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

    # ------------------------------------------------------------------ what rules ask

    def shape(self, tensor: Tensor) -> Shape | None:
        """Concrete shape; None where it is not known."""
        return tuple(tensor.shape) if isinstance(tensor, Constant) else self._shapes.get(tensor.name)

    def sizes(self, tensor: Tensor) -> Shape:
        """Concrete shape of a tensor that is known to have one: `follow` saw to it."""
        shape = self.shape(tensor)
        assert shape is not None, tensor.name
        return shape

    def ids(self, tensor: Tensor, axis: int) -> Ids | None:
        """Numbers of the positions along an axis; None where they have none."""
        return self._found.of.get(tensor.name, {}).get(axis)

    def axes(self, tensor: Tensor) -> list[int]:
        """The axes whose positions have numbers."""
        return sorted(self._found.of.get(tensor.name, {}))

    # ------------------------------------------------------------------ what rules tell

    def new(self, count: int, fixed: str = "") -> Ids:
        """Numbers for positions that are the same as no others; fixed: why they cannot be cut."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        if fixed:
            self._found.fixed |= dict.fromkeys(range(first, first + count), fixed)
        return np.arange(first, first + count, dtype=np.int64)

    def give(self, tensor: Tensor, axis: int, ids: Ids) -> None:
        """Number an axis of a tensor; where it has numbers, they are the same as these. One position is never cut."""
        if len(ids) == 1:
            self._found.fixed[int(ids[0])] = f"it is the only channel of {tensor.name!r}"
        known = self.ids(tensor, axis)
        if known is None:
            self._found.of.setdefault(tensor.name, {})[axis] = ids
        else:
            self.join(known, ids)

    def tie(self, tensor: Tensor, axis: int, ids: Ids | None) -> None:
        """Say what the positions of a constant are the same as; None: nothing that can be cut."""
        if ids is None:
            self.freeze(tensor, axis, f"the shape of {tensor.name!r} is fixed where it is also read")
        else:
            self.give(tensor, axis, ids)

    def join(self, a: Ids, b: Ids) -> None:
        """Position by position, the same."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self._parent[self._root(other)] = self._root(one)

    def freeze(self, tensor: Tensor, axis: int | None, reason: str) -> None:
        """Nothing of the tensor is cut along the axis; None: along any."""
        if tensor.name:
            self._frozen.append((tensor.name, axis, reason))

    def carry(self, source: Tensor, out: Tensor, axes: Mapping[int, int], reason: str) -> None:
        """Pass numbers on, from axis to axis; what is numbered along others is not cut."""
        for axis in self.axes(source):
            ids = self.ids(source, axis)
            if axis in axes and ids is not None and self.sizes(out)[axes[axis]] == len(ids):
                self.give(out, axes[axis], ids)
            else:
                self.freeze(source, axis, reason)

    def makes(self, node: Node, ids: Ids) -> None:
        """A layer's output channels."""
        self._found.made.append((node, ids))

    def reads(self, node: Node, ids: Ids) -> None:
        """What a layer sums over."""
        self._found.read.append((node, ids))

    def heads(self, ids: Ids) -> None:
        """Numbers of an attention's heads."""
        self._found.heads.update(ids.tolist())

    def roots(self, ids: Ids) -> Ids:
        """The same numbers, equal where positions are known to be the same by now."""
        return np.asarray([self._root(i) for i in ids.ravel().tolist()], np.int64).reshape(ids.shape)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i


Rule = Callable[[Tracker, Node], str | None]
"""Follows one node: why nothing that it reads can be cut, or None."""


def freeze_others(t: Tracker, node: Node) -> None:
    """Freeze what is numbered along other axes of the input than that of its channels."""
    for axis in t.axes(node.inputs[0]):
        if axis != 1:
            t.freeze(node.inputs[0], axis, f"{node.op} {node.label!r} runs along it")


def same(t: Tracker, parties: list[tuple[Tensor, int]], what: str) -> Ids | None:
    """The numbers of axes that are combined position by position; None where one of them cannot be cut."""
    wide = [(tensor, axis) for tensor, axis in parties if t.sizes(tensor)[axis] > 1]
    computed = [(tensor, axis) for tensor, axis in wide if not isinstance(tensor, Constant)]
    known = [ids for tensor, axis in computed if (ids := t.ids(tensor, axis)) is not None]
    if not known or len(known) < len(computed):
        for tensor, axis in wide:
            t.freeze(tensor, axis, f"{what} combines it with a tensor that cannot be cut")
        return None
    for other in known[1:]:
        t.join(known[0], other)
    for tensor, axis in wide:
        if isinstance(tensor, Constant):
            t.tie(tensor, axis, known[0])
    return known[0]


def shape_parts(node: Node) -> list[tuple[Tensor, int]] | None:
    """Where each entry of a Reshape's shape comes from: (1-D tensor, place in it). None where that is not plain.

    A constant, or the Concat of constants and of single sizes read at run time.
    """
    given = node.inputs[1]
    if isinstance(given, Constant):
        return [(given, i) for i in range(given.shape[0])]
    maker = edit.producer(given)
    if maker is None or maker.op != "Concat":
        return None
    return [(part, i) for part in maker.inputs for i in range(part.shape[0] if isinstance(part, Constant) else 1)]


def constant_entry(part: tuple[Tensor, int]) -> int | None:
    """The value of one entry of a shape; None where it is computed."""
    tensor, place = part
    if not isinstance(tensor, Constant):
        return None
    values: NDArray[Any] = tensor.values
    return int(values.reshape(-1)[place])


def normal(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def given_axes(node: Node, slot: int, rank: int) -> Sequence[int] | None:
    """Axes named by an attribute, or by a constant input; all where none are named, None where they are computed."""
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
