"""How one node is converted between the layouts NCHW and NHWC: its axes, its parameters and its tensors.

A tensor has one of two layouts: `LAST` (0), channels last [N, *S, C], or `FIRST` (1), channels first [N, C, *S]. A
converted node reads and makes the same tensors in the other layout.
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


def perm_to(layout: int, rank: int) -> list[int]:
    """The `perm` of the Transpose that converts a tensor of this rank from the other layout to this one."""
    return [0, rank - 1, *range(1, rank - 1)] if layout == FIRST else [0, *range(2, rank), 1]


def transposed_layout(node: Node) -> tuple[int, int] | None:
    """(layout of its output, rank) for a Transpose between the layouts; None for other nodes."""
    if node.op != "Transpose" or node.domain not in STANDARD_DOMAINS:
        return None
    perm = list(node.attrs.get("perm", ()))
    layout = next((layout for layout in (FIRST, LAST) if perm == perm_to(layout, len(perm))), None)
    return None if layout is None or len(perm) not in RANKS else (layout, len(perm))


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """How a node is converted to the other layout.

    Attributes:
        tensors: The inputs and outputs that change their layout with the node. The others stay as they are.
        write: Called with the model and the new layout; changes the node's attributes and constants, not `tensors`.
        needs_first: Whether the runtime has fast kernels for channels first only.
        scan_cost: 1 if the node works along an axis that is not the last after the change only, -1 if before it only, 0
            if there is no difference. Runtimes transpose twice for an axis that is not the last.
    """

    tensors: tuple[Tensor, ...]
    write: Callable[[Model, int], None]
    needs_first: bool = False
    scan_cost: int = 0


class CannotChange(Exception):  # control flow, never an error of the user
    """The node cannot be converted to the other layout."""


@dataclass(frozen=True, slots=True)
class Case:
    """A node to convert, and the layout to convert it to.

    Attributes:
        model: The model.
        node: The node; its tensors are in the other layout.
        layout: The layout to convert to.
    """

    model: Model
    node: Node
    layout: int

    def rank(self, tensor: Tensor) -> int:
        """The tensor's rank. Raises CannotChange if it is unknown."""
        shape = self.model.shape(tensor)
        if shape is None:
            raise CannotChange
        return len(shape)

    def layout_rank(self, tensor: Tensor) -> int:
        """The rank of a tensor that changes its layout. Raises CannotChange if it is constant or has no layout."""
        rank = self.rank(tensor)
        if rank not in RANKS or isinstance(tensor, Constant):
            raise CannotChange
        return rank

    def perm(self, rank: int) -> list[int]:
        """The `perm` of a Transpose to the new layout."""
        return perm_to(self.layout, rank)

    def axis(self, axis: int, rank: int) -> int:
        """The number of an axis in the new layout."""
        if not -rank <= axis < rank:
            raise CannotChange
        return self.perm(rank).index(axis % rank)

    def ints(self, slot: int, attribute: str) -> list[int] | None:
        """Integers that are an input in newer operators and an attribute in older ones; None if there are none.

        Raises CannotChange if they are computed.
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
        """The first input and all outputs. Raises CannotChange unless they have the same rank."""
        x, outs = self.node.inputs[0], [t for t in self.node.outputs if t.name]
        rank = self.layout_rank(x)
        if any(self.rank(out) != rank for out in outs):
            raise CannotChange
        return x, *outs


# ---------------------------------------------------------------------- edits


def put_ints(model: Model, node: Node, slot: int, attribute: str, values: Sequence[int]) -> None:
    """Replace integers that `Case.ints` returned."""
    if attribute in node.attrs:
        node.attrs[attribute] = list(values)
        return
    old = node.inputs[slot] if slot < len(node.inputs) else None
    kind = weights.read(old).dtype if isinstance(old, Constant) else np.dtype(np.int64)
    while len(node.inputs) <= slot:
        node.inputs.append(type(node.outputs[0])(""))
    node.inputs[slot] = edit.add_constant(model, node.label, attribute, np.array(values, kind))


def reorder(model: Model, node: Node, slot: int, order: Sequence[int]) -> None:
    """Reorder an input that has a value for each axis; a computed one by a Gather."""
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


def turned_constant(model: Model, node: Node, constant: Constant, rank: int, layout: int) -> Constant:
    """A constant that is broadcast to a tensor of this rank, converted to this layout."""
    values = weights.read(constant)
    perm = perm_to(layout, rank)
    shape = (1,) * (rank - values.ndim) + values.shape

    def compute() -> Array:
        return np.ascontiguousarray(weights.read(constant).reshape(shape).transpose(perm))

    if values.nbytes <= 1 << 20:
        return edit.add_constant(model, node.label, "turned", compute())
    lazy = weights.ComputedValues(tuple(shape[i] for i in perm), values.dtype, compute)
    return edit.add_constant(model, node.label, "turned", lazy)


def nothing(_model: Model, _layout: int) -> None:
    """The `write` of a node that is the same in both layouts."""
