"""Put biases and weights that were learned into a model, quantized or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxshot.graph import Model, edit
from onnxshot.graph.ops import OPS
from onnxshot.maths.finite import finite
from onnxshot.passes.base import Change


class Learned(Protocol):
    """What was learned of one layer: None where it stays."""

    @property
    def bias(self) -> NDArray[Any] | None:
        """As the node's bias is stored."""

    @property
    def weight(self) -> NDArray[Any] | None:
        """As the weight is stored; integers where a DequantizeLinear stands behind it."""


@dataclass(frozen=True, slots=True)
class ApplyRepairs:
    """Replace the biases and the weights of layers, by name, with those that were learned."""

    repairs: Mapping[str, Learned]
    name: str = "apply_repairs"

    def run(self, model: Model) -> Change:
        """Put in new constants; edits counts the layers. What is not finite is left as it was."""
        change = Change()
        for node in model.graph.nodes:
            repair = self.repairs.get(node.label)
            if repair is None:
                continue
            if not finite(repair.bias, repair.weight):
                change.skip(node, "what was learned of it is not finite")
                continue
            slot = OPS[node.op].bias
            if repair.bias is not None and slot is not None:
                node.inputs[slot] = edit.add_constant(model, node.inputs[slot].name, "corrected", repair.bias)
            if repair.weight is not None:
                maker = edit.producer(node.inputs[1])
                holder, slot = (node, 1) if maker is None else (maker, 0)
                old = holder.inputs[slot]
                holder.inputs[slot] = edit.add_constant(model, old.name, "learned", repair.weight)
                holder.inputs[slot].stored_as = getattr(old, "stored_as", 0)
            change.edits += 1
        return change
