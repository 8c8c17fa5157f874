"""Make computed shapes of Reshape constant: Reshape(x, Concat(Shape ...)) -> Reshape(x, [0, 8, -1])."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxshot.graph import Constant, Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.graph.symbolic_dims import Expr, entries, equal
from onnxshot.passes.base import Change
from onnxshot.passes.static_shapes import StaticShapes


@dataclass(frozen=True, slots=True)
class ConstantReshapeShapes:
    """Replace a computed shape if each size is static, equal to the same axis of the input (0), or the only other (-1).

    The nodes that computed the shape become unused: x.view(B, T, 8, 64) then needs neither Shape nor Concat.

    Edits count the Reshapes of the top-level graph. Nothing is reported as skipped.

    Attributes:
        known: symbolic shapes of this model, or of the model before other rewrites; None to infer them.
    """

    known: StaticShapes | None = None
    name: str = "constant_reshape_shapes"

    def run(self, model: Model) -> Change:
        """Replace the shapes."""
        change = Change()
        nodes = [n for n in model.graph.nodes if n.op == "Reshape" and n.domain in STANDARD_DOMAINS and _computed(n)]
        if not nodes:
            return change
        known = self.known or StaticShapes.of(model)
        for node in nodes:
            before, target = known.dims(node.inputs[0]), known.numbers(node.inputs[1])
            found = None if before is None or target is None else constant_target(before, entries(target))
            if found is not None:
                node.inputs[1] = edit.add_constant(model, node.label, "shape", np.array(found, np.int64))
                change.edits += 1
        return change


def _computed(node: Node) -> bool:
    """Whether the shape is computed, and 0 in it means to keep the axis (no allowzero)."""
    return len(node.inputs) > 1 and not isinstance(node.inputs[1], Constant) and not node.attrs.get("allowzero", 0)


def constant_target(before: tuple[Any, ...], target: list[Any]) -> list[int] | None:
    """The constant shape; None if it needs two -1, or a -1 that an axis of size 0 would make ambiguous."""
    found: list[int | None] = []
    for axis, size in enumerate(target):
        if not isinstance(size, Expr):
            if size == 0 or size < -1:
                return None
            found.append(size)
        else:
            found.append(0 if axis < len(before) and equal(size, before[axis]) else None)
    if None not in found:
        return [size for size in found if size is not None]
    if found.count(None) > 1 or any(size is not None and size < 1 for size in found):
        return None
    return [-1 if size is None else size for size in found]
