"""graphsurgeon's graphs, nodes and tensors, compared by identity instead of by content.

graphsurgeon compares nodes by all attributes and tensors by name, and its lists of consumers rely on that. Two equal
nodes, or two tensors of one name in different subgraphs, would be confused. Comparison by identity also allows nodes
and tensors as keys of sets and dicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, SupportsIndex

import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto

Tensor = gs.Tensor

_NEAR = 64  # nodes


class Node(gs.Node):  # type: ignore[misc]  # graphsurgeon ships no types
    """A node.

    Attributes:
        extra: the doc string, metadata and device configurations, which graphsurgeon does not keep.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    extra: NodeProto = NodeProto()

    @property
    def label(self) -> str:
        """The name under which messages and reports show the node: its own, or else that of its first output."""
        return str(self.name or (self.outputs[0].name if self.outputs else self.op))


class Variable(gs.Variable):  # type: ignore[misc]  # graphsurgeon ships no types
    """A tensor computed at run time."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Constant(gs.Constant):  # type: ignore[misc]  # graphsurgeon ships no types
    """A tensor with stored values."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Nodes(list[Any]):
    """The nodes of a graph, each once. Whether a node is among them is known without a search.

    Most passes remove nodes from the first to the last, so that the next one is found near the place of the one before.
    """

    def __init__(self, nodes: Iterable[Any] = ()) -> None:
        super().__init__(nodes)
        self._held = set(self)
        self._place = 0  # where the last node was removed

    def __contains__(self, node: object) -> bool:
        return node in self._held

    def append(self, node: Any) -> None:
        """Add a node at the end."""
        super().append(node)
        self._held.add(node)

    def insert(self, index: SupportsIndex, node: Any) -> None:
        """Add a node before the one at an index."""
        super().insert(index, node)
        self._held.add(node)

    def extend(self, nodes: Iterable[Any]) -> None:
        """Add nodes at the end."""
        super().extend(nodes)
        self._held = set(self)

    def remove(self, node: Any) -> None:
        """Remove a node. Raises ValueError where it is not among them."""
        start = max(self._place - _NEAR, 0)
        try:
            self._place = self.index(node, start, start + 4 * _NEAR)
        except ValueError:
            self._place = self.index(node)
        super().__delitem__(self._place)
        self._held.discard(node)

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove the node at an index and return it."""
        node = super().pop(index)
        self._held.discard(node)
        return node

    def clear(self) -> None:
        """Remove all nodes."""
        super().clear()
        self._held.clear()

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        self._held = set(self)

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        super().__delitem__(index)
        self._held = set(self)

    def __iadd__(self, nodes: Iterable[Any]) -> Self:  # type: ignore[misc]  # as list has it
        self.extend(nodes)
        return self


class Graph(gs.Graph):  # type: ignore[misc]  # graphsurgeon ships no types
    """A graph or subgraph. Its attributes also hold the ValueInfoProtos of the file, which are written unchanged."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, Nodes(value) if name == "nodes" and type(value) is not Nodes else value)


class EmptyList(list[Any]):
    """An empty list attribute, with the attribute type (INTS, FLOATS or STRINGS) that the file states for it."""

    kind: int = AttributeProto.INTS
