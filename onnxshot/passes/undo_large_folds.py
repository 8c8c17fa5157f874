"""Undo constant folding that makes the file larger: folded constant -> the node and the constants it was made from.

Examples are masks, positions, tables behind a Cast, and the transpose of a stored matrix. Other passes need the values,
but the file does not. Runtimes fold such nodes when they load a model, so inference takes no longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx import defs

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_NODE_BYTES = 96  # bytes of a node with its names and attributes
_LEAST_BYTES = 256  # bytes that undoing a fold must save
_STABLE = frozenset(
    {
        "Add", "And", "Cast", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Exp", "Expand", "Gather", "Greater",
        "Less", "Log", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reshape", "Sin", "Sqrt", "Sub", "Tile", "Transpose",
        "Where",
    }
)  # fmt: skip
"""Operators that compute the same in all opsets from 9 on, for models that are valid in the lower opset."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeBy:
    """A node that was folded, with everything needed to restore it.

    Attributes:
        op: operator.
        domain: operator domain; None for the standard one.
        attrs: attributes.
        inputs: its inputs, which are constants.
        outputs: number of outputs.
        opset: opset of the model when the node was folded.
    """

    op: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: int
    opset: int

    def means_the_same(self, opset: int) -> bool:
        """Whether the node computes the same in a model of that opset."""
        if opset == self.opset or self.op in _STABLE:
            return True
        try:
            return bool(defs.get_schema(self.op, opset).since_version <= self.opset)
        except defs.SchemaError:
            return False


def remember(constant: Constant, made_by: MadeBy, index: int) -> None:
    """Record the folded node of a constant. index: which output of the node it was."""
    constant.made_by, constant.made_at = made_by, index


def maker(constant: Tensor, opset: int) -> MadeBy | None:
    """The folded node of a constant, if it can be restored in a model of this opset; else None."""
    found: MadeBy | None = getattr(constant, "made_by", None)
    return found if found is not None and found.means_the_same(opset) else None


@dataclass(slots=True)
class UndoLargeFolds:
    """Restore folded nodes whose result takes more bytes in the file than the node and its inputs.

    Edits count the constants that are no longer stored. Nothing is reported as skipped.
    """

    name: str = "undo_large_folds"
    _costs: dict[Tensor, int] = field(default_factory=dict)
    _built: dict[MadeBy, list[Variable]] = field(default_factory=dict)
    _stored: dict[str, Constant] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Restore the nodes, those of the largest constants first."""
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
            del self._stored[constant.name]  # so that no other constant counts on it being stored
            made = self._made(model, constant, constant.name)
            edit.replace_uses(model, constant, made)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _making(self, constant: Tensor, opset: int) -> int:
        """Bytes that restoring the node, and the nodes that its inputs need, adds to the file."""
        made_by = maker(constant, opset)
        assert made_by is not None
        if made_by in self._built:
            return 0
        return _NODE_BYTES + sum(self._cost(t, opset) for t in dict.fromkeys(made_by.inputs) if t.name)

    def _cost(self, tensor: Tensor, opset: int) -> int:
        """Bytes that storing or computing a tensor adds to the file. Each tensor counts once."""
        if tensor in self._costs or self._same_stored(tensor) is not None:
            return 0
        self._costs[tensor] = weights.size_bytes(tensor)
        if maker(tensor, opset) is not None and weights.size_bytes(tensor) > _NODE_BYTES:
            self._costs[tensor] = min(self._costs[tensor], self._making(tensor, opset))
        return self._costs[tensor]

    def _same_stored(self, tensor: Tensor) -> Constant | None:
        """The stored constant that equals the tensor: copies of a model have the same values under the same name."""
        found = self._stored.get(tensor.name)
        same = found is not None and found.shape == tensor.shape and found._values.dtype == tensor._values.dtype
        return found if same else None

    def _made(self, model: Model, constant: Constant, name: str = "") -> Tensor:
        """Restore the node and return its output."""
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
    """Whether a float weight takes more bytes than the node that it was folded from, and has no narrow stored type."""
    made_by = maker(constant, model.opset)
    if made_by is None or getattr(constant, "stored_as", None):
        return False
    unfold = UndoLargeFolds()
    unfold._stored = {c.name: c for c in model.constants() if c is not constant}
    return weights.size_bytes(constant) - unfold._making(constant, model.opset) >= _LEAST_BYTES


def can_be_made(node: Node) -> bool:
    """Whether a folded node can be restored later: a standard operator other than Constant and Identity."""
    return node.op not in ("Constant", "Identity") and node.domain in STANDARD_DOMAINS and bool(node.inputs)
