"""Put repaired biases and weights into a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxshot.graph import Model, edit
from onnxshot.graph.ops import OPS
from onnxshot.passes.base import Change
from onnxshot.reconstruct import Repair


@dataclass(frozen=True, slots=True)
class ApplyRepairs:
    """Replace the biases and the quantized weights of layers, by name, with those that were learned."""

    repairs: Mapping[str, Repair]
    name: str = "apply_repairs"

    def run(self, model: Model) -> Change:
        """Put in new constants; edits counts the layers."""
        change = Change()
        for node in model.graph.nodes:
            repair = self.repairs.get(node.label)
            if repair is None:
                continue
            slot = OPS[node.op].bias
            if repair.bias is not None and slot is not None:
                node.inputs[slot] = edit.add_constant(model, node.inputs[slot].name, "corrected", repair.bias)
            if repair.weight is not None:
                maker = edit.producer(node.inputs[1])
                assert maker is not None
                maker.inputs[0] = edit.add_constant(model, maker.inputs[0].name, "rounded", repair.weight)
            change.edits += 1
        return change
