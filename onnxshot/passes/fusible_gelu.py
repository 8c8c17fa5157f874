"""Reorder Gelu so that runtimes fuse it: Mul(x, Mul(0.5, gate)) -> Mul(Mul(x, gate), 0.5).

Here gate = 1 + Erf(x / sqrt(2)). ONNX Runtime's Gelu fusion matches (x * gate) / 2 and (x / 2) * gate, but not
x * (gate / 2), which recent exporters write: five kernels run instead of one. Halving is exact in binary floating
point, so the results are the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model, Node, edit
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import is_gate, made_by, scalar, with_constant


@dataclass(frozen=True, slots=True)
class FusibleGelu:
    """Rewrite x * (0.5 * gate) as (x * gate) * 0.5, in subgraphs too.

    Edits count the Gelus. Nothing is reported as skipped.
    """

    name: str = "fusible_gelu"

    def run(self, model: Model) -> Change:
        """Reorder the Gelus."""
        change = Change()
        for _, node in model.walk():
            half = _halved_gate(model, node)
            if half is None:
                continue
            product = edit.only_consumer(model, half.outputs[0])
            if product is None:
                continue
            slot = 0 if scalar(half.inputs[0]) == 0.5 else 1
            x_slot = 1 if product.inputs[0] is half.outputs[0] else 0
            half.inputs[slot], product.inputs[x_slot] = product.inputs[x_slot], half.inputs[slot]
            edit.rename(model, half, "whole")
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _halved_gate(model: Model, node: Node) -> Node | None:
    """The node, if it is a Mul(0.5, gate) and its only reader multiplies it by the x of the gate; else None."""
    pair = with_constant(node) if made_by(node.outputs[0], "Mul") is node else None
    if pair is None or scalar(pair[1]) != 0.5 or not is_gate(pair[0]):
        return None
    user = edit.only_consumer(model, node.outputs[0])
    gate = with_constant(edit.producer(pair[0]))
    erf = None if gate is None else made_by(gate[0], "Erf")
    inner = None if erf is None else with_constant(made_by(erf.inputs[0], "Div", "Mul"))
    if user is None or user.op != "Mul" or inner is None or len(user.inputs) != 2:
        return None
    return node if any(t is inner[0] for t in user.inputs) else None
