"""Quantize weights only: float weight -> op becomes int8 weight -> DequantizeLinear -> op. For size, not for speed.

If no kernel reads the integers, the weight becomes int8 -> Cast -> Mul -> op, which runtimes fold when they load the
file. An embedding becomes Cast(Gather(int8 table)) * Gather(row scales), so that only the gathered rows are
dequantized: in ONNX Runtime, dequantizing the whole table runs at 0.01x of float speed. For targets without an int8
Gather, the table gets a DequantizeLinear. Weights in blocks become what block_weights.py describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxshot.graph import Constant, Graph, Model, Node, edit, weights
from onnxshot.graph.ops import scale_axes
from onnxshot.maths.affine import INT8, INT16, PerBlock, PerChannel, QuantScheme
from onnxshot.passes.base import Change
from onnxshot.passes.block_weights import BlockWeights
from onnxshot.passes.dequantized_blocks import DequantizedBlocks
from onnxshot.passes.quantized_weights import QuantizedWeights
from onnxshot.passes.store_int8 import StoreInt8
from onnxshot.planning.plan import DEQUANTIZED, FOLDED, GATHERED, WEIGHTS, Plan, StoredWeight, WeightPlan
from onnxshot.targets import target_named


@dataclass(frozen=True, slots=True)
class QuantizeWeightsOnly:
    """Quantize the weights of the nodes whose mode is "weights", in subgraphs too.

    Edits count the nodes. Skipped: weights that hold NaN or infinity.

    Attributes:
        plan: the plan, with the scheme and range method of each weight.
        ties: weights that equal another one or its transpose, as in `tie_weights.ties_of`.
    """

    plan: Plan
    ties: Sequence[tuple[Constant, Constant, bool]] = ()
    name: str = "quantize_weights_only"

    def run(self, model: Model) -> Change:
        """Quantize the weights."""
        change = Change()
        labels = self.plan.labels(WEIGHTS)
        nodes = [(g, n) for g, n in model.walk() if n.label in labels]
        quantized = QuantizedWeights(model, self.plan.kept.weights)
        in_blocks = BlockWeights(model, self.ties, self.plan.rounded)
        tables = frozenset(n.inputs[0] for _, n in nodes if n.op == "Gather" and isinstance(n.inputs[0], Constant))
        standard = DequantizedBlocks(model, target_named(self.plan.target), self.ties, self.plan.rounded, tables)
        folded: dict[str, dict[str, list[StoredWeight]]] = {}  # method -> node label -> weights
        for graph, node in nodes:
            planned = self.plan.weights[node.label]
            if planned.form == DEQUANTIZED and planned.in_blocks:
                standard.rewrite(graph, node, planned)
            elif isinstance(planned.scheme.granularity, PerBlock):
                in_blocks.rewrite(graph, node, planned)
            elif node.op == "Gather" and planned.form == GATHERED:
                _rewrite_embedding(model, graph, node, quantized, planned)
            else:
                recurrent = node.op in ("LSTM", "GRU", "RNN")
                slots = [i for i in ((1, 2) if recurrent else (planned.slot,)) if isinstance(node.inputs[i], Constant)]
                if planned.form == FOLDED:
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
    """Gather(table [V, D], ids) -> Cast(Gather(q [V, D], ids)) * Gather(scale [V, 1], ids), with one scale per row."""
    table, ids = node.inputs
    out = node.outputs[0]
    # No zero point is gathered, so it must be 0: unsigned types are replaced by signed ones.
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
