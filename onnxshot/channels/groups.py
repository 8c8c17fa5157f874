"""Dependency groups: channels that several layers share, and layers whose channels cannot be removed, with the reason.

A channel belongs to one group. Removing it removes it from every tensor that holds it: weights, biases, normalization
parameters, both inputs of an addition, the gate of a squeeze-excite, all parts of a gated MLP, the query, key and value
of a head (DepGraph, Fang et al. 2023). Which positions of which axes belong together is found by
`graph/axis_coupling.py`, with a rule for each operator in `graph/axis_rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxshot.graph import Model, Node
from onnxshot.graph.axis_coupling import Axes, Ids, Shape
from onnxshot.graph.axis_rules import follow
from onnxshot.graph.skip import Skip

Kind = Literal["channels", "mlp", "heads"]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that some layers produce together; each of them can be removed alone.

    Attributes:
        name: Label of the first layer that produces them.
        kind: Attention heads, hidden units of an MLP, or channels of anything else.
        ids: Numbers of the removable channels, each once.
        makers: The layers that produce the channels, each with the numbers of all its output channels in order.
        readers: The layers that sum over the channels, each with the numbers of all its input channels in order.
        parts: Sets of numbers; of each set one channel must remain, since a tensor may not become empty.
    """

    name: str
    kind: Kind
    ids: Ids
    makers: tuple[tuple[Node, Ids], ...]
    readers: tuple[tuple[Node, Ids], ...]
    parts: tuple[frozenset[int], ...]


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of the top-level graph, the axes they were found on, and the layers that cannot be pruned."""

    axes: Axes
    rows: tuple[Group, ...]
    skips: tuple[Skip, ...]


def groups_of(model: Model, shapes: Mapping[str, Shape]) -> Groups:
    """Find the groups of a model. shapes: concrete shapes of its tensors, see `concrete_shapes`."""
    axes = follow(model, shapes)
    family = _families(axes)
    everywhere = [ids for held in axes.of.values() for ids in held.values()]
    parts: dict[int, set[frozenset[int]]] = {}
    for ids in everywhere:
        part = frozenset(ids.tolist())
        if not any(i in axes.fixed for i in part):
            parts.setdefault(family[min(part)], set()).add(part)
    made: dict[int, list[tuple[Node, Ids]]] = {}
    for node, ids in axes.made:
        made.setdefault(family[int(ids[0])], []).append((node, ids))
    read = _reads(axes, family)
    rows, skips = [], []
    for number, makers in ((number, tuple(pairs)) for number, pairs in made.items()):
        every = np.unique(np.concatenate([ids for _, ids in makers]))
        free = np.asarray([i for i in every.tolist() if i not in axes.fixed], np.int64)
        readers = tuple(read.get(number, ()))
        reason = next((axes.fixed[i] for i in every.tolist() if i in axes.fixed), "it is the only channel")
        if len(free) < 2 or not readers:
            reason = reason if len(free) < 2 else "no layer with weights of its own reads it"
            skips += [Skip(node.label, node.op, reason) for node, _ in makers]
            continue
        rows.append(
            Group(makers[0][0].label, _kind(axes, makers, readers), free, makers, readers, tuple(parts.get(number, ())))
        )
    return Groups(axes, tuple(rows), tuple(skips))


def _reads(axes: Axes, family: Mapping[int, int]) -> dict[int, list[tuple[Node, Ids]]]:
    """Number of a group -> the layers that sum over any of its removable channels, in graph order."""
    free = {i for _, ids in axes.made for i in ids.tolist()}.difference(axes.fixed)
    found: dict[int, list[tuple[Node, Ids]]] = {}
    for node, ids in axes.read:
        for number in {family[i] for i in ids.tolist() if i in free}:
            found.setdefault(number, []).append((node, ids))
    return found


def _families(axes: Axes) -> dict[int, int]:
    """Channel number -> group number; layers whose outputs share a channel are in one group."""
    parent = list(range(axes.count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for _, ids in axes.made:
        for i in ids[1:].tolist():
            parent[root(i)] = root(int(ids[0]))
    return {i: root(i) for i in range(axes.count)}


def _kind(axes: Axes, makers: tuple[tuple[Node, Ids], ...], readers: tuple[tuple[Node, Ids], ...]) -> Kind:
    if any(int(ids[0]) in axes.heads for _, ids in makers):
        return "heads"
    dense = all(node.op in ("Gemm", "MatMul") for node, _ in (*makers, *readers))
    return "mlp" if dense else "channels"


def step_size(group: Group, multiple: int) -> int:
    """Number of channels to remove at a time, so that every layer loses a multiple of `multiple` outputs."""
    free, found = set(group.ids.tolist()), 1
    for _, ids in group.makers:
        times = np.unique([n for i, n in zip(*np.unique(ids, return_counts=True), strict=True) if int(i) in free])
        if len(times):
            each = math.gcd(*times.tolist())
            found = math.lcm(found, multiple // math.gcd(multiple, each))
    return found


def in_steps(group: Group, order: Ids, size: int) -> Ids:
    """Reorder channels so that each run of `size` belongs to the same layers; incomplete runs are dropped.

    Where stages of a network extend the channels of earlier stages, some channels are in all stages and some only in
    the last. Removing a mixture of both would leave no layer a multiple of `size`.
    """
    kinds = {i: tuple(int(np.count_nonzero(ids == i)) for _, ids in group.makers) for i in order.tolist()}
    if size == 1 or len(set(kinds.values())) == 1:
        return order
    waiting: dict[tuple[int, ...], list[int]] = {}
    found: list[int] = []
    for i in order.tolist():
        same = waiting.setdefault(kinds[i], [])
        same.append(i)
        if len(same) == size:
            found += same
            same.clear()
    return np.asarray(found, np.int64)
