"""Sizes that are those of an input are read off the input, and not off whatever tensor has them too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit
from onnxshot.graph.dims import Expr, entries
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.known_sizes import Known

_PICKS = ("Gather", "Slice")
_MOST = 8  # sizes that a Shape is asked for at once: a tensor has no more


@dataclass(frozen=True, slots=True)
class SizesFromInputs:
    """Let what reads Shape of a tensor inside the model read sizes of the inputs, where they are those.

    Exporters ask whatever is at hand for the batch and the length. A tensor that a Shape reads beside the next layer is
    not fused with it, and one that only a Shape reads is computed for nothing.
    """

    name: str = "sizes_from_inputs"

    def run(self, model: Model) -> Change:
        """Rewrite; edits counts the tensors of sizes that are made of inputs now."""
        change = Change()
        shapes = [n for n in model.graph.nodes if _is_shape(n) and edit.producer(n.inputs[0]) is not None]
        if not shapes:
            return change
        known, inputs = Known.of(model), _Inputs(model)
        for shape in shapes:
            picks = [n for n in edit.consumers(shape.outputs[0]) if n.op in _PICKS and n.inputs[0] is shape.outputs[0]]
            for node in [*(n for n in picks if not edit.is_output(model, n.outputs[0])), shape]:
                if edit.is_output(model, node.outputs[0]) or not edit.consumers(node.outputs[0]):
                    continue
                value = known.numbers(node.outputs[0])
                made = None if value is None or value.ndim > 1 else inputs.made(node, entries(value), value.ndim)
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
class _Inputs:
    """Makes tensors of sizes of a model's inputs; each once."""

    model: Model
    places: dict[str, tuple[Tensor, int]] = field(init=False)
    _shapes: dict[str, Tensor] = field(init=False, default_factory=dict)
    _held: dict[tuple[Any, ...], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.places = {}
        for tensor in self.model.graph.inputs:
            shape = self.model.shape(tensor)
            for axis, size in enumerate(shape or ()):
                if not isinstance(size, int):
                    self.places[f"{tensor.name}:{axis}"] = (tensor, axis)

    def made(self, node: Node, sizes: list[Any], rank: int) -> Tensor | None:
        """A tensor of these sizes; None where one is neither known nor that of an input."""
        parts = [s if isinstance(s, int) else self._place(s) for s in sizes]
        if not parts or len(parts) > _MOST or any(part is None for part in parts):
            return None
        key = (rank, *parts)
        if key not in self._held:
            tensors = [self._one(part, rank) for part in parts if part is not None]
            if len(tensors) > 1:
                attrs = {"axis": 0}
                tensors = edit.add_node(
                    self.model, "Concat", tensors, base=node.label, suffix="sizes", attrs=attrs
                ).outputs
            self._held[key] = tensors[0]
        return self._held[key]

    def _place(self, size: Any) -> str | None:
        """The name of the input's dimension that this is; None where it is computed from several, or of no input."""
        if not isinstance(size, Expr) or len(size.terms) != 1:
            return None
        ((names, coefficient),) = size.terms
        return names[0] if len(names) == 1 and coefficient == 1 and names[0] in self.places else None

    def _one(self, part: int | str, rank: int) -> Tensor:
        key = (rank, part)
        if key not in self._held:
            if isinstance(part, int):
                value = np.array([part] if rank else part, np.int64)
                self._held[key] = edit.add_constant(self.model, "size", str(part), value)
            else:
                self._held[key] = self._picked(part, rank)
        return self._held[key]

    def _picked(self, part: str, rank: int) -> Tensor:
        tensor, axis = self.places[part]
        if tensor.name not in self._shapes:
            shape = edit.add_node(self.model, "Shape", [tensor], base=tensor.name, suffix="shape")
            self._shapes[tensor.name] = shape.outputs[0]
        at: Constant = edit.add_constant(
            self.model, tensor.name, f"axis_{axis}", np.array([axis] if rank else axis, np.int64)
        )
        read: list[Tensor | Variable] = [self._shapes[tensor.name], at]
        return edit.add_node(
            self.model, "Gather", read, base=tensor.name, suffix=f"size_{axis}", attrs={"axis": 0}
        ).outputs[0]
