"""Let constants that folding has made larger be computed again: the file holds what they are made of.

Masks, positions, tables behind a Cast, a matrix that is read turned as well: passes want to see their values, files do
not. Runtimes compute such nodes when they load a model, not at every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx import defs

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_NODE_BYTES = 96  # a node, its names and attributes
_LEAST_BYTES = 256  # of the file that a constant must cost to be computed again
_STABLE = frozenset(
    {
        "Add", "And", "Cast", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Exp", "Expand", "Gather", "Greater",
        "Less", "Log", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reshape", "Sin", "Sqrt", "Sub", "Tile", "Transpose",
        "Where",
    }
)  # fmt: skip
"""Operators that mean the same in every opset from 9 on, as far as what was valid in the lower one goes."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeBy:
    """A node that was folded: what it takes to compute its outputs again."""

    op: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: int
    opset: int

    def means_the_same(self, opset: int) -> bool:
        """Whether the node may stand in a model of that opset."""
        if opset == self.opset or self.op in _STABLE:
            return True
        try:
            return bool(defs.get_schema(self.op, opset).since_version <= self.opset)
        except defs.SchemaError:
            return False


def remember(constant: Constant, made_by: MadeBy, index: int) -> None:
    """Note which output of which node a constant was."""
    constant.made_by, constant.made_at = made_by, index


def maker(constant: Tensor, opset: int) -> MadeBy | None:
    """The node that a constant was made by, where it can be put back."""
    found: MadeBy | None = getattr(constant, "made_by", None)
    return found if found is not None and found.means_the_same(opset) else None


@dataclass(slots=True)
class UndoLargeFolds:
    """Compute again, in the file, the constants that take more bytes than what they are made of."""

    name: str = "undo_large_folds"
    _costs: dict[Tensor, int] = field(default_factory=dict)
    _built: dict[MadeBy, list[Variable]] = field(default_factory=dict)
    _stored: dict[str, Constant] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Unfold, the largest first; edits counts the constants that are no longer stored."""
        change = Change()
        live = model.constants()
        able = [c for c in live if maker(c, model.opset) is not None and not edit.is_output(model, c)]
        if not able:
            return change
        kept = {p for graph in model.graphs() for p in graph.annotation_params}
        self._stored = {c.name: c for c in live}
        for constant in sorted(able, key=weights.size_bytes, reverse=True):
            if constant in kept or weights.size_bytes(constant) < _LEAST_BYTES:
                continue
            self._costs.clear()
            if weights.size_bytes(constant) - self._making(constant, model.opset) < _LEAST_BYTES:
                continue
            del self._stored[constant.name]  # before others are held to be made of it
            made = self._made(model, constant, constant.name)
            edit.replace_uses(model, constant, made)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _making(self, constant: Tensor, opset: int) -> int:
        """Bytes that the node and all behind it add to the file."""
        made_by = maker(constant, opset)
        assert made_by is not None
        if made_by in self._built:
            return 0
        return _NODE_BYTES + sum(self._cost(t, opset) for t in dict.fromkeys(made_by.inputs) if t.name)

    def _cost(self, tensor: Tensor, opset: int) -> int:
        """Bytes that the file grows by to hold a tensor, stored or computed; each counts once."""
        if tensor in self._costs or self._same_stored(tensor) is not None:
            return 0
        self._costs[tensor] = weights.size_bytes(tensor)
        if maker(tensor, opset) is not None and weights.size_bytes(tensor) > _NODE_BYTES:
            self._costs[tensor] = min(self._costs[tensor], self._making(tensor, opset))
        return self._costs[tensor]

    def _same_stored(self, tensor: Tensor) -> Constant | None:
        """The constant of the model that a tensor is; copies of a model hold the same values under the same name."""
        found = self._stored.get(tensor.name)
        same = found is not None and found.shape == tensor.shape and found._values.dtype == tensor._values.dtype
        return found if same else None

    def _made(self, model: Model, constant: Constant, name: str = "") -> Tensor:
        """The output of the node, put back."""
        made_by = maker(constant, model.opset)
        assert made_by is not None
        if made_by not in self._built:
            inputs = [self._input(model, t) for t in made_by.inputs]
            named = name or model.fresh(constant.name)
            outputs = [
                Variable(named if i == constant.made_at else model.fresh(named, str(i))) for i in range(made_by.outputs)
            ]
            self._built[made_by] = outputs
            node = Node(
                made_by.op, model.fresh(named, made_by.op), dict(made_by.attrs), inputs, outputs, made_by.domain
            )
            model.graph.nodes.insert(0, node)
        return self._built[made_by][constant.made_at]

    def _input(self, model: Model, tensor: Tensor) -> Tensor:
        if not tensor.name:
            return Variable("")
        found = self._same_stored(tensor)
        if found is not None:
            return found
        if maker(tensor, model.opset) is not None and self._making(tensor, model.opset) < weights.size_bytes(tensor):
            return self._made(model, tensor)
        name = tensor.name if tensor.name not in self._stored else model.fresh(tensor.name)
        again = Constant(name, tensor._values)
        self._stored[tensor.name] = again
        return again


def grew(model: Model, constant: Constant) -> bool:
    """Whether a float weight takes more bytes than what it was made of, which its stored type does not make good."""
    made_by = maker(constant, model.opset)
    if made_by is None or getattr(constant, "stored_as", None):
        return False
    unfold = UndoLargeFolds()
    unfold._stored = {c.name: c for c in model.constants() if c is not constant}
    return weights.size_bytes(constant) - unfold._making(constant, model.opset) >= _LEAST_BYTES


def can_be_made(node: Node) -> bool:
    """Whether a node that is folded is worth remembering: constants and Identity are what they hold."""
    return node.op not in ("Constant", "Identity") and node.domain in STANDARD_DOMAINS and bool(node.inputs)
