"""Rewrite MatMul and Gemm with a constant weight to the form of int8 kernels: x [.., K] times [K, N], plus [N].

    MatMul(W, x) -> Transpose(MatMul(Transpose(x), W'))
    Gemm(alpha, beta, transA) -> Transpose, Gemm

alpha is multiplied into the weight and beta into the bias. The weight is transposed in the file. A weight [1, K, N]
becomes [K, N].
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_PAYS = 64  # least M x K / (M + K) of a left weight [M, K] for int8 to save more than two Transposes cost


@dataclass(frozen=True, slots=True)
class CanonicalMatMul:
    """Rewrite products, in subgraphs too. They keep their names.

    Edits count the products. Nothing is reported as skipped.

    Attributes:
        excluded: nodes to leave unchanged.
        min_elements: smallest number of weight elements.
    """

    excluded: Collection[Node] = ()
    min_elements: int = 0
    name: str = "canonical_matmul"

    def run(self, model: Model) -> Change:
        """Rewrite the products."""
        change, constants = Change(), _Constants(model)
        for graph, node in list(model.walk()):
            if node.op not in ("MatMul", "Gemm") or node.domain not in STANDARD_DOMAINS or node in self.excluded:
                continue
            held = [i for i in (0, 1) if _is_weight(node.inputs[i], self.min_elements)]
            if len(held) != 1 or isinstance(node.inputs[1 - held[0]], Constant):
                continue
            rewrite = _gemm if node.op == "Gemm" else _matmul
            change.edits += rewrite(constants, graph, node, held[0])
        if change.edits:
            edit.toposort(model)
        return change


def _is_weight(tensor: Tensor, least: int) -> bool:
    if not isinstance(tensor, Constant) or getattr(tensor, "overridable", False) or len(tensor.shape) < 2:
        return False
    return int(np.prod(tensor.shape)) >= least and weights.elem_type(tensor) == TensorProto.FLOAT


def _pays(weight: Constant) -> bool:
    m, k = (int(n) for n in weight.shape[-2:])
    return m * k >= _PAYS * (m + k)


# ---------------------------------------------------------------------- MatMul


def _matmul(constants: _Constants, graph: Graph, node: Node, slot: int) -> bool:
    """Rewrite a MatMul. False if it has the form already, or cannot be rewritten."""
    model, weight, other = constants.model, node.inputs[slot], node.inputs[1 - slot]
    shape = model.shape(other)
    if shape is None:
        return False
    if slot == 1:
        if len(weight.shape) == 2 or any(n != 1 for n in weight.shape[:-2]) or len(shape) < len(weight.shape):
            return False
        node.inputs[1] = constants.constant(weight, "matrix", lambda w: w.reshape(w.shape[-2:]))
        return True
    rank = len(shape)
    if len(weight.shape) != 2 or rank < 2 or not _pays(weight):
        return False
    x = _swapped(model, graph, other, rank, node.label, "turned")
    out = node.outputs[0]
    turned = Variable(model.fresh(out.name, "turned"), out.dtype, None)
    node.inputs.clear()
    node.inputs.extend([x, constants.constant(weight, "turned", lambda w: w.T)])
    node.outputs[0] = turned
    model.renamed[out.name] = turned.name
    _swapped(model, graph, turned, rank, node.label, "turned_back", [out])
    return True


# ---------------------------------------------------------------------- Gemm


def _gemm(constants: _Constants, graph: Graph, node: Node, slot: int) -> bool:
    """Rewrite alpha A B + beta C. False if it has the form already, or cannot be rewritten."""
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    added = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    fixed = added is None or (isinstance(added, Constant) and not getattr(added, "overridable", False))
    plain = alpha == 1.0 and (beta == 1.0 or added is None)
    if (beta != 1.0 and not fixed) or (slot == 1 and plain and not node.attrs.get("transA", 0)):
        return False
    if slot == 0 and not _pays(node.inputs[0]):
        return False
    if not plain:
        weight = node.inputs[slot]
        if alpha != 1.0:
            node.inputs[slot] = constants.constant(weight, f"times_{alpha:g}", lambda w: w * np.float32(alpha))
        if isinstance(added, Constant) and beta != 1.0:
            node.inputs[2] = added = constants.constant(added, f"times_{beta:g}", lambda c: c * np.float32(beta))
        node.attrs.pop("alpha", None)
        node.attrs.pop("beta", None)
    if slot == 0:
        _gemm_with_left_weight(constants, graph, node, added)
    elif node.attrs.pop("transA", 0):
        node.inputs[0] = _swapped(constants.model, graph, node.inputs[0], 2, node.label, "turned")
    return True


def _gemm_with_left_weight(constants: _Constants, graph: Graph, node: Node, added: Tensor | None) -> None:
    """Rewrite A B + C with a constant A as (B' A')' + C. C is added before the last Transpose if it is a column."""
    model = constants.model
    weight, x, out = node.inputs[0], node.inputs[1], node.outputs[0]
    turn_weight, turn_x = not node.attrs.get("transA", 0), not node.attrs.get("transB", 0)
    rows = int(weight.shape[0 if turn_weight else 1])
    if turn_x:
        x = _swapped(model, graph, x, 2, node.label, "turned")
    moved = constants.constant(weight, "turned", lambda w: w.T) if turn_weight else weight
    column = isinstance(added, Constant) and (list(added.shape) == [rows, 1] or int(np.prod(added.shape)) == 1)
    given: list[Tensor] = [x, moved]
    if column:
        assert isinstance(added, Constant)
        given.append(constants.constant(added, "row", lambda c: np.broadcast_to(c.reshape(-1), (rows,))))
    node.inputs.clear()
    node.inputs.extend(given)
    node.attrs = {}
    turned = Variable(model.fresh(out.name, "turned"), out.dtype, None)
    node.outputs[0] = turned
    model.renamed[out.name] = turned.name
    if added is None or column:
        _swapped(model, graph, turned, 2, node.label, "turned_back", [out])
        return
    back = _swapped(model, graph, turned, 2, node.label, "turned_back")
    edit.add_node(model, "Add", [back, added], base=node.label, suffix="added", outputs=[out], graph=graph)


# ---------------------------------------------------------------------- parts


def _swapped(
    model: Model, graph: Graph, x: Tensor, rank: int, label: str, suffix: str, outputs: list[Tensor] | None = None
) -> Tensor:
    """Add a Transpose that swaps the last two axes of x."""
    attrs = {"perm": [*range(rank - 2), rank - 1, rank - 2]}
    node = edit.add_node(
        model, "Transpose", [x], base=label, suffix=suffix, outputs=outputs or 1, attrs=attrs, graph=graph
    )
    return node.outputs[0]


@dataclass(frozen=True, slots=True)
class _Constants:
    """Makes constants from constants of the model. Nodes that need the same one share it."""

    model: Model
    _known: dict[tuple[Constant, str], Constant] = field(default_factory=dict)

    def constant(self, source: Constant, kind: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Constant:
        """The constant change(source), computed when it is read. kind: key and name suffix of `change`."""
        if (source, kind) not in self._known:
            probe = change(np.broadcast_to(np.zeros((), np.float32), tuple(source.shape)))

            def compute() -> NDArray[Any]:
                return np.ascontiguousarray(change(np.asarray(weights.read(source))))

            values = weights.ComputedValues(tuple(probe.shape), source._values.dtype, compute)
            self._known[source, kind] = edit.add_constant(self.model, source.name, kind, values)
        return self._known[source, kind]
