"""Store weights in 8 bits and compute in float: for size, not for speed.

A weight becomes int8 -> DequantizeLinear -> op; where no kernel takes the integers, int8 -> Cast -> Mul -> op, which is
computed once. An embedding becomes Gather of int8 rows, Cast, times Gather of the
rows' scales, so that only the rows asked for are dequantized: ONNX Runtime runs a DequantizeLinear over the table at
0.01x. Where the target has no int8 Gather, and moves it in front of a DequantizeLinear itself, it gets that one.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Graph, Model, Node, edit, weights
from onnxshot.graph.ops import scale_axes
from onnxshot.maths.affine import INT8, INT16, PerChannel, QuantScheme
from onnxshot.passes.base import Change
from onnxshot.passes.quantized_weights import QuantizedWeights
from onnxshot.passes.store_int8 import StoreInt8
from onnxshot.planning.plan import WEIGHTS, Plan, StoredWeight, WeightPlan


@dataclass(frozen=True, slots=True)
class QuantizeWeightsOnly:
    """Store the weights of the plan's weights-only nodes in 8 bits."""

    plan: Plan
    name: str = "quantize_weights_only"

    def run(self, model: Model) -> Change:
        """Rewrite the nodes; edits counts them."""
        change = Change()
        labels = self.plan.labels(WEIGHTS)
        nodes = [(g, n) for g, n in model.walk() if n.label in labels]
        quantized = QuantizedWeights(model, self.plan.kept.weights)
        folded: dict[str, dict[str, list[StoredWeight]]] = {}  # by method, by node
        for graph, node in nodes:
            planned = self.plan.weights[node.label]
            if node.op == "Gather" and not planned.gathers_floats:
                _rewrite_embedding(model, graph, node, quantized, planned)
            else:
                recurrent = node.op in ("LSTM", "GRU", "RNN")
                slots = [i for i in ((1, 2) if recurrent else (planned.slot,)) if isinstance(node.inputs[i], Constant)]
                if planned.folded:
                    chosen = {node.label: [_stored(node, slot, planned) for slot in slots]}
                    folded.setdefault(planned.method, {}).update(chosen)
                    slots = []
                for slot in slots:
                    params = quantized.params(node.inputs[slot], planned.scheme, planned.method)
                    quantized.dequantized(node, slot, params)
            change.edits += 1
        for method, stored in folded.items():
            change.skips += StoreInt8(stored, method).run(model).skips
        if nodes:
            edit.toposort(model)
        return change


def _stored(node: Node, slot: int, planned: WeightPlan) -> StoredWeight:
    axes = scale_axes(node, slot, len(node.inputs[slot].shape))
    return StoredWeight(slot, axes or () if isinstance(planned.scheme.granularity, PerChannel) else ())


def _rewrite_embedding(
    model: Model, graph: Graph, node: Node, quantized: QuantizedWeights, planned: WeightPlan
) -> None:
    """Gather(table [V, D], ids) -> Cast(Gather(q [V, D], ids)) * Gather(scale [V, 1], ids). A scale per row."""
    table, ids = node.inputs
    out = node.outputs[0]
    # No zero point is gathered, so it must be 0: unsigned types are taken as their signed twins.
    dtype = planned.scheme.dtype
    dtype = dtype if dtype.signed else {8: INT8, 16: INT16}[dtype.bits]
    params = quantized.params(table, QuantScheme(dtype, True, PerChannel(0)), planned.method)
    rows, _, _ = quantized.constants(table, params)
    kind = weights.elem_type(table)
    column = edit.add_constant(model, table.name, "row_scale", params.scale[:, None].astype(table._values.dtype))
    base = node.label
    node.inputs.clear()
    node.outputs.clear()
    picked = edit.add_node(model, "Gather", [rows, ids], base=base, suffix="rows", attrs={"axis": 0}, graph=graph)
    cast = edit.add_node(model, "Cast", picked.outputs, base=base, suffix="cast", attrs={"to": kind}, graph=graph)
    scale = edit.add_node(model, "Gather", [column, ids], base=base, suffix="scale", attrs={"axis": 0}, graph=graph)
    edit.add_node(
        model, "Mul", [cast.outputs[0], scale.outputs[0]], base=base, suffix="rescale", outputs=[out], graph=graph
    )
    edit.remove(model, [node])
