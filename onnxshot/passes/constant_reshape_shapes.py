"""Shapes that a Reshape is given at run time become constants: 0 keeps an axis, -1 is what is left."""

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
    """Give Reshapes constant shapes where each size is static, that of the same axis before, or the only other one.

    What computed the shape goes where nothing else reads it: x.view(B, T, 8, 64) needs neither Shape nor Concat.
    known: sizes that were found before, of this model as it was or as it is.
    """

    known: StaticShapes | None = None
    name: str = "constant_reshape_shapes"

    def run(self, model: Model) -> Change:
        """Rewrite; edits counts the Reshapes."""
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
    """Whether the shape is no constant, and a 0 in it keeps an axis."""
    return len(node.inputs) > 1 and not isinstance(node.inputs[1], Constant) and not node.attrs.get("allowzero", 0)


def constant_target(before: tuple[Any, ...], target: list[Any]) -> list[int] | None:
    """The shape in constants; None where it takes more than one -1, or one that an empty axis would make unclear."""
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
