"""Replace weights and biases by corrected ones, for example from bias correction, AdaRound or pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, edit
from onnxshot.graph.ops import OPS
from onnxshot.maths.finite import finite
from onnxshot.passes.base import Change


class Learned(Protocol):
    """Corrected values of one layer. None means unchanged."""

    @property
    def bias(self) -> NDArray[Any] | None:
        """The bias, shaped and typed like the stored one."""

    @property
    def weight(self) -> NDArray[Any] | None:
        """The weight, shaped and typed like the stored one: integers if a DequantizeLinear reads it."""


@dataclass(frozen=True, eq=False)
class CorrectedBias:
    """A layer of which only the bias changes."""

    bias: NDArray[Any]
    weight: None = None


@dataclass(frozen=True, slots=True)
class ApplyRepairs:
    """Replace the biases and weights of layers in the top-level graph. The model may be quantized.

    Edits count the layers. Skipped: layers whose corrected values are not finite.

    Attributes:
        repairs: node label -> corrected values; an Add behind a MatMul has its bias.
    """

    repairs: Mapping[str, Learned]
    name: str = "apply_repairs"

    def run(self, model: Model) -> Change:
        """Replace the values."""
        change = Change()
        for node in model.graph.nodes:
            repair = self.repairs.get(node.label)
            if repair is None:
                continue
            if not finite(repair.bias, repair.weight):
                change.skip(node, "its corrected values are not finite")
                continue
            slot = _bias_slot(node)
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


def _bias_slot(node: Node) -> int | None:
    """The input that holds the bias; of an Add its constant, which is the bias of a MatMul before it."""
    if node.op == "Add":
        return next((slot for slot, tensor in enumerate(node.inputs) if isinstance(tensor, Constant)), None)
    return OPS[node.op].bias
