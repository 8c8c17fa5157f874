"""Constant folding: replace nodes whose results do not depend on the model's inputs by initializers.

Afterwards the weight of a Conv or MatMul is an initializer that the node reads directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import RANDOM, STANDARD_DOMAINS
from onnxshot.passes import evaluate_constants
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed
from onnxshot.passes.static_shapes import StaticShapes
from onnxshot.passes.undo_large_folds import MadeBy, can_be_made, remember

_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Dropout"})
_KEEP_VALUES = frozenset(
    {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Expand"}
)  # their results hold values of their inputs: a constant remembers through them that it was stored as float16
_SMALL = 64  # bytes; equal constants up to this size count as the same input
_NARROW_BYTES = 2  # a constant cast to float32 remembers its type up to this width, to be stored in that type again


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Fold Constant nodes, nodes whose inputs are all constant, and computations of static sizes, in subgraphs too.

    A Gather or Slice of a Shape is folded if the sizes that it selects are static, whatever the other sizes are. So is
    arithmetic on sizes: batch * 12 / batch is 12.

    QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, Dropout, nodes with subgraphs and nodes that make an output
    of the graph are not folded.

    Edits count the folded nodes. Skip reasons: "operators of other domains are not evaluated"; "it is random"; "it
    makes an output"; "the size of its result cannot be inferred"; "the result would take <n> bytes, its inputs take
    <m>"; or the message of `evaluate_constants.CannotEvaluate`.

    Attributes:
        max_growth: Bytes by which a result may be larger than its inputs. Weights stored in 16 or fewer bits are
            exempt.
        known: Static sizes of this model, if they were computed before; they stay valid while folding.
        left: Nodes to leave, such as those that dequantize an 8-bit weight when the file is loaded.
    """

    max_growth: int = 1 << 20
    known: StaticShapes | None = None
    left: frozenset[Node] = frozenset()
    name: str = "fold_constants"

    def run(self, model: Model) -> Change:
        """Fold the nodes."""
        change = Change()
        folded: list[Node] = []
        known = self.known or StaticShapes.of(model)
        inner = {t.name for g, n in model.walk() if g is not model.graph for t in n.outputs}
        made: dict[tuple[object, ...], Sequence[Constant]] = {}  # by node and inputs: equal results are stored once
        for graph, node in list(model.walk()):
            if node in self.left:
                continue
            key = _recipe(node)
            values = made.get(key) or self._values(model, node, known, change)
            if values is None:
                continue
            outputs = [t for t in node.outputs if t.name]
            constants = [_replace(model, graph, node, *pair, inner) for pair in zip(outputs, values, strict=True)]
            if key not in made and can_be_made(node) and all(map(_known, node.inputs)):
                made_by = MadeBy(
                    node.op, node.domain, dict(node.attrs), tuple(node.inputs), len(node.outputs), model.opset
                )
                for tensor, constant in zip(outputs, constants, strict=True):
                    remember(constant, made_by, next(i for i, t in enumerate(node.outputs) if t is tensor))
            if node.inputs:
                made[key] = constants
            folded.append(node)
        edit.remove(model, folded)
        change.edits = len(folded)
        return change

    def _values(
        self, model: Model, node: Node, known: StaticShapes, change: Change
    ) -> Sequence[Constant | evaluate_constants.Values] | None:
        """Values of the node's named outputs; None if they are not constant or are not to be stored."""
        if node.domain not in STANDARD_DOMAINS:
            if node.inputs and all(map(_known, node.inputs)):
                change.skip(node, "operators of other domains are not evaluated")
            return None
        given_out = any(edit.is_output(model, t) for t in node.outputs)
        if node.op == "Constant":
            value = None if given_out else evaluate_constants.constant_value(node)
            return None if value is None else [value]
        static = known.values_of(node)
        if static is None and (not any(t.name for t in node.inputs) or not all(map(_known, node.inputs))):
            return None
        if node.op in _KEPT or any(isinstance(a, Graph) for a in node.attrs.values()):
            return None
        if node.op in RANDOM:
            change.skip(node, "it is random")
            return None
        if given_out:
            change.skip(node, "it makes an output")
            return None
        if static is not None:
            return static
        if node.op == "Identity":
            return [node.inputs[0]]
        return self._computed(model, node, change)

    def _computed(self, model: Model, node: Node, change: Change) -> Sequence[evaluate_constants.Values] | None:
        """Results of a node with constant inputs; None, with a skip, if it cannot be evaluated or grows too large."""
        before = sum(weights.size_bytes(t) for t in {t for t in node.inputs if t.name})  # one read twice counts once
        if node.op in evaluate_constants.MOVERS:
            value = evaluate_constants.moved(model, node)
            if value is not None:
                if not _stored_as(node) and self._too_large(node, int(value.nbytes), before, change):
                    return None
                return [value]
        foreseen = evaluate_constants.result_bytes(model, node)
        if foreseen is None:
            change.skip(node, "the size of its result cannot be inferred")
            return None
        if self._too_large(node, foreseen, before, change):
            return None
        try:
            results = evaluate_constants.evaluate(model, node)
        except evaluate_constants.CannotEvaluate as e:
            change.skip(node, str(e))
            return None
        if self._too_large(node, sum(r.nbytes for r in results), before, change):
            return None
        return results

    def _too_large(self, node: Node, after: int, before: int, change: Change) -> bool:
        """Record a skip if a result is larger than its inputs by more than `max_growth`."""
        if after - before <= self.max_growth:
            return False
        change.skip(node, f"the result would take {after} bytes, its inputs take {before}")
        return True


def _known(tensor: Tensor) -> bool:
    """Whether an input is constant or left out."""
    return not tensor.name or fixed(tensor)


def _replace(
    model: Model, graph: Graph, node: Node, out: Tensor, value: Constant | evaluate_constants.Values, inner: set[str]
) -> Constant:
    """Let readers of `out` read a constant, under the same name unless a subgraph makes a tensor of that name."""
    if isinstance(value, Constant):
        edit.replace_uses(model, out, value)
        return value
    keeps_name = graph is model.graph and out.name not in inner
    constant = Constant(out.name if keeps_name else model.fresh(out.name), value)
    stored_as = _stored_as(node)
    if stored_as:
        constant.stored_as = stored_as
    edit.replace_uses(model, out, constant)
    return constant


def _recipe(node: Node) -> tuple[object, ...]:
    """A key that is equal for nodes with equal results, such as weights in both branches of an If."""
    if not all(isinstance(value, int | float | str | list | tuple) for value in node.attrs.values()):
        return (id(node),)  # tensors and graphs: equal for this node alone
    attrs = tuple(sorted((name, str(type(value)), repr(value)) for name, value in node.attrs.items()))
    named = tuple(bool(t.name) for t in node.outputs)
    return node.op, node.domain, attrs, named, tuple(map(_identity, node.inputs))


def _identity(tensor: Tensor) -> object:
    """A key that is equal for one tensor, and for small constants with equal values: exporters repeat axes per node."""
    if not isinstance(tensor, Constant) or weights.size_bytes(tensor) > _SMALL or not fixed(tensor):
        return id(tensor)
    values = np.asarray(weights.read(tensor))
    return (str(values.dtype), values.shape, values.tobytes()) if values.dtype.kind in "biuf" else id(tensor)


def _stored_as(node: Node) -> int:
    """ONNX type, of at most 16 bits, in which the node's float32 result was stored; 0 if there is none."""
    source = node.inputs[0] if node.inputs and isinstance(node.inputs[0], Constant) else None
    if source is None:
        return 0
    if node.op == "Cast" and node.attrs.get("to") == TensorProto.FLOAT:
        if weights.elem_type(source) == TensorProto.FLOAT:
            return int(getattr(source, "stored_as", 0))
        return weights.elem_type(source) if 0 < source._values.dtype.itemsize <= _NARROW_BYTES else 0
    return int(getattr(source, "stored_as", 0)) if node.op in _KEEP_VALUES else 0
