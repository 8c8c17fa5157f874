"""Costs that removing channels reduces: multiply-accumulates, parameters and time, as sums over layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node
from onnxshot.graph.axis_coupling import Axes, Ids, Shape
from onnxshot.graph.macs import count

Alive = NDArray[np.bool_]
"""[count]: whether each channel remains."""


class CostTerm(Protocol):
    """The cost of one layer or one constant."""

    @property
    def axes(self) -> Sequence[Ids]:
        """Channel numbers along each axis that the cost depends on."""

    def left(self, alive: Alive) -> float:
        """The cost with these channels remaining."""


@dataclass(frozen=True, eq=False)
class Product:
    """A cost that is proportional to the width of each of its axes.

    Attributes:
        amount: The cost at full width.
        axes: Channel numbers along each axis.
    """

    amount: float
    axes: tuple[Ids, ...]

    def left(self, alive: Alive) -> float:
        """The amount times the remaining share of every axis."""
        return self.amount * math.prod(float(np.count_nonzero(alive[ids])) / len(ids) for ids in self.axes)


@dataclass(frozen=True, eq=False)
class Cost:
    """The sum of the costs of all layers or constants of a model."""

    parts: tuple[CostTerm, ...]

    def left(self, alive: Alive, touching: Collection[int] | None = None) -> float:
        """The cost with these channels remaining; only of the parts at the positions `touching`, if given."""
        chosen = self.parts if touching is None else [self.parts[i] for i in touching]
        return sum(part.left(alive) for part in chosen)

    def touched(self, ids: Ids) -> list[int]:
        """Positions of the parts whose cost depends on any of these channels."""
        return [i for i, part in enumerate(self.parts) if any(np.isin(axis, ids).any() for axis in part.axes)]


def macs_cost(model: Model, axes: Axes, shapes: Mapping[str, Shape]) -> Cost:
    """Multiply-accumulates of one run."""
    return Cost(tuple(Product(row.macs, _work_axes(row.node, axes.of)) for row in count(model, shapes)))


def params_cost(model: Model, axes: Axes) -> Cost:
    """Number of float parameters; integer constants such as shapes and axes do not count."""
    held = [c for c in model.constants() if c.dtype.kind == "f"]
    return Cost(tuple(Product(math.prod(c.shape), tuple(axes.of.get(c.name, {}).values())) for c in held))


def _work_axes(node: Node, of: Mapping[str, Mapping[int, Ids]]) -> tuple[Ids, ...]:
    """The axes that the work of a node is proportional to: those of its output, and the one it sums over."""
    if node.op in ("Conv", "ConvTranspose"):
        w = of.get(node.inputs[1].name, {})
        return tuple(w[axis] for axis in (0, 1) if axis in w)
    found = list(of.get(node.outputs[0].name, {}).values()) if node.outputs else []
    w = of.get(node.inputs[1].name, {}) if len(node.inputs) > 1 and isinstance(node.inputs[1], Constant) else {}
    summed = 1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0
    return (*found, w[summed]) if summed in w else tuple(found)
