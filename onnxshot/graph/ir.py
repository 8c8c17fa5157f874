"""graphsurgeon's graphs, nodes and tensors, compared by identity instead of by content.

graphsurgeon compares nodes by all attributes and tensors by name, and its lists of consumers rely on that. Two equal
nodes, or two tensors of one name in different subgraphs, would be confused. Comparison by identity also allows nodes
and tensors as keys of sets and dicts.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto

Tensor = gs.Tensor


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


class Graph(gs.Graph):  # type: ignore[misc]  # graphsurgeon ships no types
    """A graph or subgraph. Its attributes also hold the ValueInfoProtos of the file, which are written unchanged."""


class EmptyList(list[Any]):
    """An empty list attribute, with the attribute type (INTS, FLOATS or STRINGS) that the file states for it."""

    kind: int = AttributeProto.INTS
