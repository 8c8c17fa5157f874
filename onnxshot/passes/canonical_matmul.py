"""Bring a MatMul or Gemm of a constant weight into the one form that int8 kernels know: x [.., K] times [K, N] + [N].

alpha goes into the weight and beta into what is added. A transposed input gets a Transpose. With the weight on the
left, W x = (x' W')': both sides are transposed, the weight in the file. A weight [1, K, N] is [K, N].
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

_PAYS = 64  # M x K / (M + K) of a weight [M, K] on the left, from where on int8 saves more than two Transposes cost


@dataclass(frozen=True, slots=True)
class CanonicalMatMul:
    """Turn products; they keep their names.

    Attributes:
        left: nodes that stay as they are.
        least: elements that a weight must have.
    """

    left: Collection[Node] = ()
    least: int = 0
    name: str = "canonical_matmul"

    def run(self, model: Model) -> Change:
        """Turn them; edits counts them."""
        change, made = Change(), _Made(model)
        for graph, node in list(model.walk()):
            if node.op not in ("MatMul", "Gemm") or node.domain not in STANDARD_DOMAINS or node in self.left:
                continue
            held = [i for i in (0, 1) if _is_weight(node.inputs[i], self.least)]
            if len(held) != 1 or isinstance(node.inputs[1 - held[0]], Constant):
                continue
            turned = _gemm(made, graph, node, held[0]) if node.op == "Gemm" else _matmul(made, graph, node, held[0])
            change.edits += turned
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


def _matmul(made: _Made, graph: Graph, node: Node, slot: int) -> bool:
    model, weight, other = made.model, node.inputs[slot], node.inputs[1 - slot]
    shape = model.shape(other)
    if shape is None:
        return False
    if slot == 1:
        if len(weight.shape) == 2 or any(n != 1 for n in weight.shape[:-2]) or len(shape) < len(weight.shape):
            return False
        node.inputs[1] = made.constant(weight, "matrix", lambda w: w.reshape(w.shape[-2:]))
        return True
    rank = len(shape)
    if len(weight.shape) != 2 or rank < 2 or not _pays(weight):
        return False
    x = _swapped(model, graph, other, rank, node.label, "turned")
    out = node.outputs[0]
    turned = Variable(model.fresh(out.name, "turned"), out.dtype, None)
    node.inputs.clear()
    node.inputs.extend([x, made.constant(weight, "turned", lambda w: w.T)])
    node.outputs[0] = turned
    model.renamed[out.name] = turned.name
    _swapped(model, graph, turned, rank, node.label, "turned_back", [out])
    return True


# ---------------------------------------------------------------------- Gemm


def _gemm(made: _Made, graph: Graph, node: Node, slot: int) -> bool:
    """alpha A B + beta C; False where nothing was to be done, or cannot be."""
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
            node.inputs[slot] = made.constant(weight, f"times_{alpha:g}", lambda w: w * np.float32(alpha))
        if isinstance(added, Constant) and beta != 1.0:
            node.inputs[2] = added = made.constant(added, f"times_{beta:g}", lambda c: c * np.float32(beta))
        node.attrs.pop("alpha", None)
        node.attrs.pop("beta", None)
    if slot == 0:
        _turn_gemm(made, graph, node, added)
    elif node.attrs.pop("transA", 0):
        node.inputs[0] = _swapped(made.model, graph, node.inputs[0], 2, node.label, "turned")
    return True


def _turn_gemm(made: _Made, graph: Graph, node: Node, added: Tensor | None) -> None:
    """A B + C with a constant A: (B' A')', to which C is added in front of the Transpose where it is a column."""
    model = made.model
    weight, x, out = node.inputs[0], node.inputs[1], node.outputs[0]
    turn_weight, turn_x = not node.attrs.get("transA", 0), not node.attrs.get("transB", 0)
    rows = int(weight.shape[0 if turn_weight else 1])
    if turn_x:
        x = _swapped(model, graph, x, 2, node.label, "turned")
    moved = made.constant(weight, "turned", lambda w: w.T) if turn_weight else weight
    column = isinstance(added, Constant) and (list(added.shape) == [rows, 1] or int(np.prod(added.shape)) == 1)
    given: list[Tensor] = [x, moved]
    if column:
        assert isinstance(added, Constant)
        given.append(made.constant(added, "row", lambda c: np.broadcast_to(c.reshape(-1), (rows,))))
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
    """x with its last two axes swapped."""
    attrs = {"perm": [*range(rank - 2), rank - 1, rank - 2]}
    node = edit.add_node(
        model, "Transpose", [x], base=label, suffix=suffix, outputs=outputs or 1, attrs=attrs, graph=graph
    )
    return node.outputs[0]


@dataclass(frozen=True, slots=True)
class _Made:
    """Constants made of a model's; one of each kind for each, however many nodes read it."""

    model: Model
    _known: dict[tuple[Constant, str], Constant] = field(default_factory=dict)

    def constant(self, source: Constant, kind: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Constant:
        """What `change` makes of a constant, computed when it is read."""
        if (source, kind) not in self._known:
            probe = change(np.broadcast_to(np.zeros((), np.float32), tuple(source.shape)))

            def compute() -> NDArray[Any]:
                return np.ascontiguousarray(change(np.asarray(weights.read(source))))

            values = weights.ComputedValues(tuple(probe.shape), source._values.dtype, compute)
            self._known[source, kind] = edit.add_constant(self.model, source.name, kind, values)
        return self._known[source, kind]
