"""Replace an Einsum of one activation and one constant weight by MatMul, which has int8 kernels.

    Einsum(x, W) -> [Transpose, Reshape] -> MatMul(x, W') -> [Reshape, Transpose]

Each letter of the weight is summed (K), belongs to the weight alone (N), or is shared with x and the result (one matrix
per index, for example per expert). "btd,edf->betf" is x [b, t, d] times [d, e*f]; "betf,efd->betd" is x [b, e, t, f]
times [e, f, d]. The weight is transposed in the file; x and the result only if needed. Source: Einsum-12.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class EinsumToMatMul:
    """Replace Einsums by MatMuls of the same name, in subgraphs too.

    Edits count the Einsums. Skipped: an equation with an ellipsis or without "->", with a repeated letter, that does
    not fit the weight, that sums over an axis of one operand alone, or that is not a matrix product.

    Attributes:
        excluded: nodes to leave unchanged.
        min_elements: smallest number of weight elements.
    """

    excluded: Collection[Node] = ()
    min_elements: int = 0
    name: str = "einsum_to_matmul"
    _moved: dict[tuple[Constant, tuple[int, ...], tuple[int, ...]], Constant] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Replace the Einsums."""
        change = Change()
        for graph, node in list(model.walk()):
            if node.op != "Einsum" or node.domain not in STANDARD_DOMAINS or node in self.excluded:
                continue
            slot = _weight_slot(node)
            if slot is None or math.prod(node.inputs[slot].shape) < self.min_elements:
                continue
            form = _form(node, slot)
            if isinstance(form, str):
                change.skip(node, form)
                continue
            self._rewrite(model, graph, node, slot, form)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _rewrite(self, model: Model, graph: Graph, node: Node, slot: int, form: _Form) -> None:
        x, weight, out = node.inputs[1 - slot], node.inputs[slot], node.outputs[0]
        size = dict(zip(form.w, (int(n) for n in weight.shape), strict=True))
        label = node.label
        lead = form.rows[:-1] + form.shared + form.rows[-1:] if form.shared else form.rows
        x = _transposed(model, graph, x, form.x, lead + form.summed, label)
        if len(form.summed) > 1:
            x = _reshaped(model, graph, x, len(lead), [math.prod(size[c] for c in form.summed)], label, "joined")
        node.inputs.clear()
        node.inputs.extend([x, self._matrix(model, weight, form, size)])
        model.original_ops[label] = node.op
        node.op, node.attrs = "MatMul", {}
        made = lead + form.columns
        if made == form.out and len(form.columns) == 1:
            return
        node.outputs[0] = raw = Variable(model.fresh(out.name, "product"), out.dtype, None)
        model.renamed[out.name] = raw.name
        result: Tensor = raw
        order = _order(made, form.out)
        if len(form.columns) > 1:
            own = [out] if order is None else None
            result = _reshaped(model, graph, result, len(lead), [size[c] for c in form.columns], label, "parted", own)
        if order is not None:
            attrs = {"perm": order}
            edit.add_node(
                model, "Transpose", [result], base=label, suffix="ordered", outputs=[out], attrs=attrs, graph=graph
            )

    def _matrix(self, model: Model, weight: Constant, form: _Form, size: dict[str, int]) -> Constant:
        """The weight as [shared.., K, N]. Nodes that read it in the same form share one constant."""
        perm = [form.w.index(c) for c in form.shared + form.summed + form.columns]
        shape = [size[c] for c in form.shared]
        shape += [math.prod(size[c] for c in letters) for letters in (form.summed, form.columns)]
        if perm == sorted(perm) and shape == list(weight.shape):
            return weight

        def compute() -> NDArray[Any]:
            return np.ascontiguousarray(np.asarray(weights.read(weight)).transpose(perm)).reshape(shape)

        key = (weight, tuple(perm), tuple(shape))
        if key not in self._moved:
            values = weights.ComputedValues(tuple(shape), weight._values.dtype, compute)
            self._moved[key] = edit.add_constant(model, weight.name, "matrix", values)
        return self._moved[key]


@dataclass(frozen=True, slots=True)
class _Form:
    """The equation of an Einsum.

    Attributes:
        x: letters of the activation.
        w: letters of the weight.
        out: letters of the result.
        shared: letters of x, w and out: one matrix per index.
        summed: letters of x and w only: the K axis.
        columns: letters of w and out only: the N axis.
        rows: letters of x and out only.
    """

    x: str
    w: str
    out: str

    @property
    def shared(self) -> str:
        return "".join(c for c in self.w if c in self.x and c in self.out)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.w if c in self.x and c not in self.out)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.out if c in self.w and c not in self.x)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.x if c in self.out and c not in self.w)


def _weight_slot(node: Node) -> int | None:
    """Index of the operand that is a float32 constant, if exactly one of two is; else None."""
    if len(node.inputs) != 2:
        return None
    held = [i for i, t in enumerate(node.inputs) if isinstance(t, Constant) and not getattr(t, "overridable", False)]
    if len(held) != 1 or weights.elem_type(node.inputs[held[0]]) != TensorProto.FLOAT:
        return None
    return held[0]


def _form(node: Node, slot: int) -> _Form | str:
    """The letters of the equation, or the skip reason."""
    given = node.attrs.get("equation", b"")
    text = (given.decode(errors="replace") if isinstance(given, bytes) else str(given)).replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if not arrow or "." in text or len(terms) != 2:
        return "its equation has an ellipsis, or no '->'"
    form = _Form(terms[1 - slot], terms[slot], out)
    if any(len(set(term)) != len(term) for term in (form.x, form.w, form.out)):
        return "an operand has a repeated letter: it reads a diagonal"
    if len(form.w) != len(node.inputs[slot].shape):
        return "its equation does not fit its weight"
    if set(form.x) | set(form.w) != set(form.out) | set(form.summed):
        return "it sums over an axis of one operand alone"
    if not form.summed or not form.columns or not form.rows:
        return "it is not a matrix product"
    return form


def _order(made: str, wanted: str) -> list[int] | None:
    """The permutation from one order of letters to the other; None if they are equal."""
    return None if made == wanted else [made.index(c) for c in wanted]


def _transposed(model: Model, graph: Graph, x: Tensor, given: str, wanted: str, label: str) -> Tensor:
    order = _order(given, wanted)
    if order is None:
        return x
    node = edit.add_node(model, "Transpose", [x], base=label, suffix="turned", attrs={"perm": order}, graph=graph)
    return node.outputs[0]


def _reshaped(
    model: Model,
    graph: Graph,
    x: Tensor,
    kept: int,
    rest: Sequence[int],
    label: str,
    suffix: str,
    outputs: list[Tensor] | None = None,
) -> Tensor:
    """Reshape x: keep the first `kept` axes, and give the others the sizes `rest`."""
    shape = edit.add_constant(model, label, f"{suffix}_shape", np.array([0] * kept + list(rest), np.int64))
    node = edit.add_node(
        model, "Reshape", [x, shape], base=label, suffix=suffix, outputs=outputs or 1, graph=graph
    )
    return node.outputs[0]
