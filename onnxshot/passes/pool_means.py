"""Write the mean over all positions of a picture as GlobalAveragePool, which it is.

Exporters write ReduceMean over the spatial axes. Runtimes keep their blocked and their int8 layouts through pooling,
not through a reduction: on ONNX Runtime a squeeze-and-excite net spends a quarter of its time on changing layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Graph, Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class PoolMeans:
    """Rewrite ReduceMean over axes 2.. of [N, C, H, W] (or one, or three spatial axes) as GlobalAveragePool."""

    name: str = "pool_means"

    def run(self, model: Model) -> Change:
        """Rewrite; edits counts the nodes."""
        change = Change()
        for graph in model.graphs():
            for node in list(graph.nodes):
                if node.op == "ReduceMean" and node.domain in STANDARD_DOMAINS and _is_spatial(model, node):
                    _rewrite(model, graph, node)
                    change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _is_spatial(model: Model, node: Node) -> bool:
    shape = model.shape(node.inputs[0])
    if shape is None or len(shape) not in (3, 4, 5):
        return False
    axes = node.attrs.get("axes")  # an input from ReduceMean-18 on
    if axes is None:
        given = edit.constant_input(node, 1)
        axes = [] if given is None else given.tolist()
    return sorted(a % len(shape) for a in axes) == list(range(2, len(shape)))


def _rewrite(model: Model, graph: Graph, node: Node) -> None:
    source, out, keep = node.inputs[0], node.outputs[0], node.attrs.get("keepdims", 1)
    base = node.label
    node.inputs.clear()
    node.outputs.clear()
    last = [out] if keep else 1
    pool = edit.add_node(model, "GlobalAveragePool", [source], base=base, suffix="pool", outputs=last, graph=graph)
    if not keep:
        edit.add_node(
            model, "Flatten", pool.outputs, base=base, suffix="flat", outputs=[out], attrs={"axis": 1}, graph=graph
        )
    edit.remove(model, [node])
