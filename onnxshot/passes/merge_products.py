"""Merge MatMuls of one input into one: MatMul(x, W1), MatMul(x, W2) -> Split(MatMul(x, [W1 W2])).

Query, key and value of an attention layer are an example; their bias Adds are merged too. Starting a kernel takes most
of its time for short sequences. With one scale per output channel, the quantized values do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, edit, weights
from onnxshot.graph.weight_pieces import by_rows
from onnxshot.maths.affine import PerChannel, QuantScheme
from onnxshot.passes.base import Change
from onnxshot.planning.plan import DYNAMIC, NodePlan, Plan


@dataclass(slots=True)
class MergeProducts:
    """Merge dynamic MatMuls with per-channel scales that read one tensor, in subgraphs too. Needs Split-13.

    Edits count the merged MatMuls that were made. Nothing is reported as skipped.

    Attributes:
        plan: the plan. After `run`, it is the plan of the merged graph.
    """

    plan: Plan
    name: str = "merge_products"

    def run(self, model: Model) -> Change:
        """Merge the MatMuls and update `plan`."""
        change = Change()
        if model.opset < 13:
            return change
        for graph in model.graphs():
            for nodes in self._groups(model, graph):
                self._adopt(nodes, _merge(model, graph, nodes))
                change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _groups(self, model: Model, graph: Graph) -> list[list[Node]]:
        """Groups of MatMuls that read one tensor, with per-channel scales and weights that no other node reads."""
        dynamic = self.plan.labels(DYNAMIC)
        readers: dict[tuple[Tensor, QuantScheme, str, bool, tuple[int, ...]], list[Node]] = {}
        for node in graph.nodes:
            if node.op != "MatMul" or node.label not in dynamic or node.label in self.plan.kept.nodes:
                continue
            planned = self.plan.weights[node.label]
            alone = len(edit.consumers(node.inputs[1])) == 1 and node.inputs[1].name not in model.tied
            if isinstance(planned.scheme.granularity, PerChannel) and alone:
                matrices = tuple(node.inputs[1].shape[:-1])
                alike = (node.inputs[0], planned.scheme, planned.method, planned.twice, matrices)
                readers.setdefault(alike, []).append(node)
        return [nodes for nodes in readers.values() if len(nodes) > 1]

    def _adopt(self, nodes: Sequence[Node], merged: Node) -> None:
        """Replace the parts by the merged MatMul in the plan."""
        gone = {n.label for n in nodes}
        kept = tuple(n for n in self.plan.nodes if n.node not in gone)
        planned = {k: v for k, v in self.plan.weights.items() if k not in gone}
        planned[merged.label] = self.plan.weights[nodes[0].label]
        row = NodePlan(merged.label, merged.op, DYNAMIC, "", True)
        self.plan = replace(self.plan, nodes=(*kept, row), weights=planned)


def _merge(model: Model, graph: Graph, nodes: Sequence[Node]) -> Node:
    base = nodes[0].label
    parts = [n.inputs[1] for n in nodes]
    adds = [_bias_add(model, n) for n in nodes]
    whole = all(adds)
    outputs = [(add if whole and add is not None else n).outputs[0] for n, add in zip(nodes, adds, strict=True)]

    def beside(*rows: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(rows, axis=-1)

    sizes = np.array([p.shape[-1] for p in parts])
    shape = (*parts[0].shape[:-1], int(sizes.sum()))
    values = by_rows(shape, parts[0]._values.dtype, parts, beside)
    weight = edit.add_constant(model, parts[0].name, "merged", values)
    merged = edit.add_node(model, "MatMul", [nodes[0].inputs[0], weight], base=base, suffix="merged", graph=graph)
    result = merged.outputs[0]
    if whole:
        biases = np.concatenate([weights.read(_bias(add)) for add in adds if add is not None])
        bias = edit.add_constant(model, base, "merged_bias", biases)
        result = edit.add_node(model, "Add", [result, bias], base=base, suffix="bias", graph=graph).outputs[0]
    edit.remove(model, [*nodes, *(add for add in adds if whole and add is not None)])
    split = edit.add_constant(model, base, "sizes", sizes)
    edit.add_node(
        model, "Split", [result, split], base=base, suffix="split", outputs=outputs, attrs={"axis": -1}, graph=graph
    )
    return merged


def _bias_add(model: Model, node: Node) -> Node | None:
    """The Add of a constant vector [N] that is the only reader of the product; None without one."""
    add = edit.only_consumer(model, node.outputs[0])
    if add is None or add.op != "Add" or not any(isinstance(t, Constant) for t in add.inputs):
        return None
    return add if list(_bias(add).shape) == [node.inputs[1].shape[-1]] else None


def _bias(add: Node) -> Constant:
    return add.inputs[1] if isinstance(add.inputs[1], Constant) else add.inputs[0]
