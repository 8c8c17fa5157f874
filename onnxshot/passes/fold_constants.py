"""Turn what does not depend on the inputs into constants, so that a weight stands at its op and nowhere else."""

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
)  # what comes out of these was there before: a float16 weight in float32 stays one
_SMALL = 64  # bytes
_NARROW_BYTES = 2  # values of types so wide at most may become float32: they are stored so again where they stay float


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Fold nodes whose inputs are all constant, Constant nodes, and sizes that do not depend on the inputs.

    A Gather or Slice of a Shape folds where the sizes that it takes are static, whatever the others are, and so does
    arithmetic on them: B * 12 / B is 12.

    Existing quantization, random numbers and custom operators stay, and so do nodes that make an output of the graph.

    Attributes:
        known: sizes that were found before, of this model as it was or as it is.
        max_growth: a result may take this many bytes more than its inputs; a weight that was stored narrow, any number.
        left: nodes that stay, such as those that make floats of a weight in 8 bits when the file is loaded.
    """

    max_growth: int = 1 << 20
    known: StaticShapes | None = None
    left: frozenset[Node] = frozenset()
    name: str = "fold_constants"

    def run(self, model: Model) -> Change:
        """Fold; edits counts the nodes that went, skips name those that could have."""
        change = Change()
        gone: list[Node] = []
        known = self.known or StaticShapes.of(model)
        inner = {t.name for g, n in model.walk() if g is not model.graph for t in n.outputs}
        made: dict[tuple[object, ...], Sequence[Constant]] = {}  # by what they are made of: stored once
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
            gone.append(node)
        edit.remove(model, gone)
        change.edits = len(gone)
        return change

    def _values(
        self, model: Model, node: Node, known: StaticShapes, change: Change
    ) -> Sequence[Constant | evaluate_constants.Values] | None:
        """What the node's named outputs are, where that is constant and may be stored."""
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
        before = sum(weights.size_bytes(t) for t in {t for t in node.inputs if t.name})  # one read twice counts once
        if node.op in evaluate_constants.MOVERS:
            value = evaluate_constants.moved(model, node)
            if value is not None:
                if not _stored_as(node) and self._too_large(node, int(value.nbytes), before, change):
                    return None
                return [value]
        foreseen = evaluate_constants.result_bytes(model, node)
        if foreseen is None:
            change.skip(node, "how large its result is cannot be foreseen")
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
        if after - before <= self.max_growth:
            return False
        change.skip(node, f"the result would take {after} bytes, its inputs take {before}")
        return True


def _known(tensor: Tensor) -> bool:
    return not tensor.name or fixed(tensor)


def _replace(
    model: Model, graph: Graph, node: Node, out: Tensor, value: Constant | evaluate_constants.Values, inner: set[str]
) -> Constant:
    """Let readers of `out` read a constant of that name, or of a new one where the outermost graph may not use it."""
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
    """Equal for two nodes that give the same for the same inputs: the two LSTMs of an If, say, read equal weights."""
    attrs = tuple(sorted((name, str(type(value)), repr(value)) for name, value in node.attrs.items()))
    plain = all(isinstance(value, int | float | str | list | tuple) for value in node.attrs.values())
    named = tuple(bool(t.name) for t in node.outputs)
    return node.op, node.domain, attrs, named, tuple(map(_identity, node.inputs)), None if plain else id(node)


def _identity(tensor: Tensor) -> object:
    """Equal for the same tensor, and for small constants that are equal: exporters give each op axes of its own."""
    if not isinstance(tensor, Constant) or weights.size_bytes(tensor) > _SMALL or not fixed(tensor):
        return id(tensor)
    values = np.asarray(weights.read(tensor))
    return (str(values.dtype), values.shape, values.tobytes()) if values.dtype.kind in "biuf" else id(tensor)


def _stored_as(node: Node) -> int:
    """The narrow type that the values were stored in, where they are float32 now; else 0."""
    source = node.inputs[0] if node.inputs and isinstance(node.inputs[0], Constant) else None
    if source is None:
        return 0
    if node.op == "Cast" and node.attrs.get("to") == TensorProto.FLOAT:
        if weights.elem_type(source) == TensorProto.FLOAT:
            return int(getattr(source, "stored_as", 0))
        return weights.elem_type(source) if 0 < source._values.dtype.itemsize <= _NARROW_BYTES else 0
    return int(getattr(source, "stored_as", 0)) if node.op in _KEEP_VALUES else 0
