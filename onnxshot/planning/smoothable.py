"""Find products whose input SmoothQuant can smooth: all readers of the input can absorb the factors."""

from __future__ import annotations

from onnxshot.graph import Constant, Model, Node, Tensor
from onnxshot.planning.plan import Plan
from onnxshot.planning.shared_weights import is_shared


def readers_of(model: Model, plan: Plan, how: str) -> dict[Tensor, list[Node]]:
    """Tensor -> the MatMul and Gemm nodes of one mode that read it, in graph order.

    Left out: tensors that int8 ops produce, as they are quantized there; products with a kept trained weight scale;
    tensors with a reader whose weight other nodes read too, as it would be stored twice.
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
        if isinstance(tensor, Constant) or shared or int8_made:
            del found[tensor]
    return found

PRODUCTS = ("MatMul", "Gemm")
