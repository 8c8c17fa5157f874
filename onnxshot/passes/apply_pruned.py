"""Put pruned weights, and the biases that make up for them, into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxshot.graph import Model, edit
from onnxshot.graph.ops import OPS
from onnxshot.passes.base import Change
from onnxshot.sparsify import Pruned


@dataclass(frozen=True, slots=True)
class ApplyPruned:
    """Replace the weights and biases of layers, by name; edits counts the layers."""

    layers: Mapping[str, Pruned]
    name: str = "apply_pruned"

    def run(self, model: Model) -> Change:
        """Put in new constants."""
        change = Change()
        for node in model.graph.nodes:
            pruned = self.layers.get(node.label)
            if pruned is None:
                continue
            old = node.inputs[1]
            node.inputs[1] = edit.add_constant(model, old.name, "pruned", pruned.weight)
            node.inputs[1].stored_as = getattr(old, "stored_as", None)
            slot = OPS[node.op].bias
            if pruned.bias is not None and slot is not None:
                node.inputs[slot] = edit.add_constant(model, node.inputs[slot].name, "corrected", pruned.bias)
            change.edits += 1
        return change
