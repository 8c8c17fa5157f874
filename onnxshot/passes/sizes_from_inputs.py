"""Read sizes from the first tensor that has them: Shape(later tensor) -> Shape(model input).

Exporters read the batch size or length from any tensor. A tensor that a Shape reads besides the next layer is not fused
with it, and one that only a Shape reads is computed for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.graph.symbolic_dims import Expr, entries
from onnxshot.passes.base import Change
from onnxshot.passes.move_shapes import settled
from onnxshot.passes.static_shapes import StaticShapes

_PICKS = ("Gather", "Slice")
_MOST = 8  # largest number of sizes that one tensor of sizes holds


@dataclass(frozen=True, slots=True)
class SizesFromInputs:
    """Let readers of a Shape read the same sizes from a model input, or from the first tensor that has them.

    Edits count the tensors of sizes that were replaced, in the top-level graph. Nothing is reported as skipped.

    Attributes:
        known: symbolic shapes of this model, or of the model before other rewrites; None to infer them.
    """

    known: StaticShapes | None = None
    name: str = "sizes_from_inputs"

    def run(self, model: Model) -> Change:
        """Replace the tensors of sizes."""
        change = Change()
        shapes = [n for n in model.graph.nodes if _is_shape(n) and edit.producer(n.inputs[0]) is not None]
        if not shapes:
            return change
        known = self.known or StaticShapes.of(model)
        places = _Places(model, known)
        for shape in shapes:
            picks = [n for n in edit.consumers(shape.outputs[0]) if n.op in _PICKS and n.inputs[0] is shape.outputs[0]]
            for node in [*(n for n in picks if not edit.is_output(model, n.outputs[0])), shape]:
                if edit.is_output(model, node.outputs[0]) or not edit.consumers(node.outputs[0]):
                    continue
                value = known.numbers(node.outputs[0])
                if value is None or value.ndim > 1:
                    continue
                made = places.made(node, shape.inputs[0], entries(value), value.ndim)
                if made is not None:
                    edit.replace_uses(model, node.outputs[0], made)
                    change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _is_shape(node: Node) -> bool:
    return node.op == "Shape" and node.domain in STANDARD_DOMAINS


@dataclass(slots=True)
class _Places:
    """Adds nodes that read sizes, each from the first tensor that has it. Each size is read once."""

    model: Model
    known: StaticShapes
    _first: dict[Expr, tuple[Tensor, int]] = field(init=False, default_factory=dict)
    _top: set[Node] = field(init=False)
    _shapes: dict[Tensor, Tensor] = field(init=False, default_factory=dict)
    _held: dict[tuple[Any, ...], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._top = set(self.model.graph.nodes)
        for tensor in (*self.model.graph.inputs, *(t for n in self.model.graph.nodes for t in n.outputs)):
            for axis, size in enumerate(self.known.dims(tensor) or ()):
                if isinstance(size, Expr):
                    self._first.setdefault(size, (tensor, axis))

    def made(self, node: Node, source: Tensor, sizes: list[Any], rank: int) -> Tensor | None:
        """A tensor of these sizes; None if one is no size of a tensor, or if `source` is the first that has one."""
        if not sizes or len(sizes) > _MOST or any(not isinstance(s, int) and s not in self._first for s in sizes):
            return None
        free = [s for s in sizes if isinstance(s, Expr)]
        if any(self._place(s)[0] is source for s in free):
            return None
        key = (rank, *sizes)
        if key not in self._held:
            tensors = [self._one(size, rank) for size in sizes]
            if len(tensors) > 1:
                attrs = {"axis": 0}
                tensors = edit.add_node(
                    self.model, "Concat", tensors, base=node.label, suffix="sizes", attrs=attrs
                ).outputs
            self._held[key] = tensors[0]
        return self._held[key]

    def _place(self, size: Expr) -> tuple[Tensor, int]:
        """(first tensor with this size, after the ops that are fused with its producer; axis of the size)."""
        tensor, axis = self._first[size]
        return settled(self.model, tensor, self._top), axis

    def _one(self, size: int | Expr, rank: int) -> Tensor:
        key = (rank, size)
        if key not in self._held:
            if isinstance(size, int):
                value = np.array([size] if rank else size, np.int64)
                self._held[key] = edit.add_constant(self.model, "size", str(size), value)
            else:
                self._held[key] = self._picked(*self._place(size), rank)
        return self._held[key]

    def _picked(self, tensor: Tensor, axis: int, rank: int) -> Tensor:
        if tensor not in self._shapes:
            shape = edit.add_node(self.model, "Shape", [tensor], base=tensor.name, suffix="shape")
            self._shapes[tensor] = shape.outputs[0]
        at = edit.add_constant(self.model, tensor.name, f"axis_{axis}", np.array([axis] if rank else axis, np.int64))
        read = [self._shapes[tensor], at]
        attrs = {"axis": 0}
        return edit.add_node(self.model, "Gather", read, base=tensor.name, suffix=f"size_{axis}", attrs=attrs).outputs[
            0
        ]
