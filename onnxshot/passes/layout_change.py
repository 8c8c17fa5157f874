"""What it takes to write a node in the other layout, channels first or last: its axes, parameters and tensors.

There are two layouts of a tensor [N, C, *S]: channels last (label 0, [N, *S, C]) and channels first (label 1). To turn
a node is to let it read and give the same tensors in the other layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.linear_ops import fixed

LAST, FIRST = 0, 1
RANKS = (3, 4, 5)

Array = NDArray[Any]


def perm_to(label: int, rank: int) -> list[int]:
    """The Transpose that gives this layout of a tensor that is in the other one."""
    return [0, rank - 1, *range(1, rank - 1)] if label == FIRST else [0, *range(2, rank), 1]


def transposed_label(node: Node) -> tuple[int, int] | None:
    """Label of what a Transpose between the layouts gives, and the rank; None for other nodes."""
    if node.op != "Transpose" or node.domain not in STANDARD_DOMAINS:
        return None
    perm = list(node.attrs.get("perm", ()))
    label = next((label for label in (FIRST, LAST) if perm == perm_to(label, len(perm))), None)
    return None if label is None or len(perm) not in RANKS else (label, len(perm))


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """A node that can be written in the other layout.

    Attributes:
        tied: the tensors that turn with it; the others stay as they are.
        write: changes the node's attributes and parameters for tensors in layout `label`; not its tied tensors.
        needs_first: True where the runtime computes it well with channels first only.
        scans: what it costs to work along an axis that is not the last: 1 where it does so in this layout only, -1 in
            the one it has only, 0 where there is no difference. Runtimes transpose for it, there and back.

    """

    tied: tuple[Tensor, ...]
    write: Callable[[Model, int], None]
    needs_first: bool = False
    scans: int = 0


class CannotChange(Exception):  # not an error: the answer of a row
    """The node cannot be written in the other layout."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a row is asked: this node, from the other layout to this label."""

    model: Model
    node: Node
    label: int

    def rank(self, tensor: Tensor) -> int:
        """The tensor's rank. Raises CannotChange where it is not known."""
        shape = self.model.shape(tensor)
        if shape is None:
            raise CannotChange
        return len(shape)

    def tied_rank(self, tensor: Tensor) -> int:
        """The rank of a tensor that turns. Raises CannotChange where it is constant or has no layouts."""
        rank = self.rank(tensor)
        if rank not in RANKS or isinstance(tensor, Constant):
            raise CannotChange
        return rank

    def perm(self, rank: int) -> list[int]:
        """The Transpose that gives the layout asked for."""
        return perm_to(self.label, rank)

    def axis(self, axis: int, rank: int) -> int:
        """Where an axis goes."""
        if not -rank <= axis < rank:
            raise CannotChange
        return self.perm(rank).index(axis % rank)

    def ints(self, slot: int, attribute: str) -> list[int] | None:
        """Integers that newer operators read and older ones have as an attribute; None where there are none.

        Raises CannotChange where they are computed.
        """
        if attribute in self.node.attrs:
            return [int(v) for v in self.node.attrs[attribute]]
        if slot >= len(self.node.inputs) or not self.node.inputs[slot].name:
            return None
        if not fixed(self.node.inputs[slot]):
            raise CannotChange
        values = edit.constant_input(self.node, slot)
        return None if values is None else values.reshape(-1).tolist()

    def same_shape(self) -> tuple[Tensor, ...]:
        """First input and all outputs, which have the same rank."""
        x, outs = self.node.inputs[0], [t for t in self.node.outputs if t.name]
        rank = self.tied_rank(x)
        if any(self.rank(out) != rank for out in outs):
            raise CannotChange
        return x, *outs


# ---------------------------------------------------------------------- edits


def put_ints(model: Model, node: Node, slot: int, attribute: str, values: Sequence[int]) -> None:
    """Give integers back to where `Case.ints` found them."""
    if attribute in node.attrs:
        node.attrs[attribute] = list(values)
        return
    old = node.inputs[slot] if slot < len(node.inputs) else None
    kind = weights.read(old).dtype if isinstance(old, Constant) else np.dtype(np.int64)
    while len(node.inputs) <= slot:
        node.inputs.append(type(node.outputs[0])(""))
    node.inputs[slot] = edit.add_constant(model, node.label, attribute, np.array(values, kind))


def reorder(model: Model, node: Node, slot: int, order: Sequence[int]) -> None:
    """Put a vector that has a value for each axis into the order of the axes; a computed one by a Gather."""
    if slot >= len(node.inputs) or not node.inputs[slot].name:
        return
    old = node.inputs[slot]
    if isinstance(old, Constant) and not weights.read(old).size:
        return
    base, indices = node.label, np.array(order, np.int64)
    if fixed(old):
        node.inputs[slot] = edit.add_constant(model, base, "turned", weights.read(old)[indices])
        return
    picked = edit.add_constant(model, base, "axes", indices)
    gather = edit.add_node(
        model, "Gather", [old, picked], base=base, suffix="turned", attrs={"axis": 0}, graph=edit.graph_of(model, node)
    )
    node.inputs[slot] = gather.outputs[0]


def turned_constant(model: Model, node: Node, constant: Constant, rank: int, label: int) -> Constant:
    """A constant that is broadcast to a tensor of this rank, in the other layout."""
    values = weights.read(constant)
    perm = perm_to(label, rank)
    shape = (1,) * (rank - values.ndim) + values.shape

    def compute() -> Array:
        return np.ascontiguousarray(weights.read(constant).reshape(shape).transpose(perm))

    if values.nbytes <= 1 << 20:
        return edit.add_constant(model, node.label, "turned", compute())
    lazy = weights.ComputedValues(tuple(shape[i] for i in perm), values.dtype, compute)
    return edit.add_constant(model, node.label, "turned", lazy)


def nothing(_model: Model, _label: int) -> None:
    """Write a node that is the same in both layouts."""
