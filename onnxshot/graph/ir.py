"""graphsurgeon's nodes and tensors, compared by identity instead of by content.

graphsurgeon compares nodes by every attribute and tensors by name, and its lists of consumers rely on it: two equal
nodes, or a shadowed name in a branch, would be mixed up. Identity also lets both be keys of sets and dicts.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto

Tensor = gs.Tensor


class Node(gs.Node):  # type: ignore[misc]  # graphsurgeon ships no types
    """One operator; `extra` carries the doc string and metadata graphsurgeon has no place for."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    extra: NodeProto = NodeProto()

    @property
    def label(self) -> str:
        """What a user finds the node by: its name, or the tensor it makes where it has none."""
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
    """A graph or subgraph; holds the protos of its inputs and outputs, so that they come out as they went in."""


class EmptyList(list[Any]):
    """An empty list attribute: without elements, only the file knows what kind of list it is."""

    kind: int = AttributeProto.INTS
