"""Divide the input of a product by a factor per channel, and multiply the rows of its weight by it (SmoothQuant eq. 3).

The division is a Mul of its own: what makes the tensor, often a LayerNormalization, feeds a residual branch as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.passes.base import Change
from onnxshot.plan import DYNAMIC, Plan


@dataclass(frozen=True, slots=True)
class Smooth:
    """Smooth the tensors of the plan in front of the dynamic products that read them."""

    plan: Plan
    name: str = "smooth"

    def run(self, model: Model) -> Change:
        """Insert the divisions and scale the weights; edits counts the tensors."""
        change = Change()
        dynamic = self.plan.labels(DYNAMIC)
        tensors = model.tensors()
        for name, factors in self.plan.smoothing.items():
            tensor = tensors[name]
            users = [u for u in edit.consumers(tensor) if u.label in dynamic and u.inputs[0] is tensor]
            inverse = edit.add_constant(model, name, "smoothing", (1.0 / factors).astype(np.float32))
            divided = edit.add_node(model, "Mul", [tensor, inverse], base=name, suffix="smooth").outputs[0]
            for user in users:
                user.inputs[0] = divided
                user.inputs[1] = _scaled(model, user, factors)
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _scaled(model: Model, node: Node, factors: NDArray[np.float32]) -> Constant:
    weight = node.inputs[1]
    rows = factors if node.attrs.get("transB", 0) else factors[:, None]

    def compute() -> NDArray[Any]:
        return np.asarray(weights.read(weight)) * rows

    values = weights.ComputedValues(tuple(weight.shape), weight._values.dtype, compute)
    return edit.add_constant(model, weight.name, "smoothed", values)
