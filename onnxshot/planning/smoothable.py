"""Products whose input can be smoothed: those whose weights take up what is divided out of it."""

from __future__ import annotations

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor
from onnxshot.planning.plan import Plan
from onnxshot.planning.shared_weights import is_shared

_MOST_WEIGHTS = 1 << 24  # values of the weights that read a tensor: every strength is a product with all of them


def readers_of(model: Model, plan: Plan, how: str) -> dict[Tensor, list[Node]]:
    """The products of this treatment by the tensor they read, in graph order.

    Left out are tensors that int8 ops make, as they are quantized where they are made, products whose weights are
    kept as they came, and tensors behind which a weight has other readers: it would be stored twice.
    """
    labels = plan.labels(how) - plan.kept.nodes
    found: dict[Tensor, list[Node]] = {}
    for node in model.graph.nodes:
        if node.op in PRODUCTS and node.label in labels and isinstance(node.inputs[1], Constant):
            found.setdefault(node.inputs[0], []).append(node)
    for tensor, nodes in list(found.items()):
        planned = plan.tensors.get(tensor.name)
        shared = any(is_shared(model, node.inputs[1], nodes) for node in nodes)
        int8_made = planned is not None and (planned.all_readers or planned.source != tensor.name)
        large = sum(np.prod(n.inputs[1].shape) for n in nodes) > _MOST_WEIGHTS
        if isinstance(tensor, Constant) or shared or int8_made or large:
            del found[tensor]
    return found

PRODUCTS = ("MatMul", "Gemm")
