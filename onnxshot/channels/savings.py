"""What a cut saves: multiply-accumulates, parameters or time; each a sum of parts that go with widths."""

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


class Part(Protocol):
    """What one layer, or one constant, costs."""

    @property
    def axes(self) -> Sequence[Ids]:
        """Numbers of the positions along each axis that it shrinks with."""

    def left(self, alive: Alive) -> float:
        """What it costs with these numbers alive."""


@dataclass(frozen=True, eq=False)
class Product:
    """An amount that goes with each of its axes."""

    amount: float
    axes: tuple[Ids, ...]

    def left(self, alive: Alive) -> float:
        """The amount, times the share alive of every axis."""
        return self.amount * math.prod(float(np.count_nonzero(alive[ids])) / len(ids) for ids in self.axes)


@dataclass(frozen=True, eq=False)
class Work:
    """A sum of parts."""

    parts: tuple[Part, ...]

    def left(self, alive: Alive, touching: Collection[int] | None = None) -> float:
        """The sum with these numbers alive; touching: of these parts only, see `touched`."""
        chosen = self.parts if touching is None else [self.parts[i] for i in touching]
        return sum(part.left(alive) for part in chosen)

    def touched(self, ids: Ids) -> list[int]:
        """Which parts cutting any of these numbers changes."""
        return [i for i, part in enumerate(self.parts) if any(np.isin(axis, ids).any() for axis in part.axes)]


def macs_of(model: Model, axes: Axes, shapes: Mapping[str, Shape]) -> Work:
    """Multiply-accumulates of one run."""
    return Work(tuple(Product(row.macs, _work_axes(row.node, axes.of)) for row in count(model, shapes)))


def params_of(model: Model, axes: Axes) -> Work:
    """Float parameters: sizes, axes and other small integers are none."""
    held = [c for c in model.constants() if c.dtype.kind == "f"]
    return Work(tuple(Product(math.prod(c.shape), tuple(axes.of.get(c.name, {}).values())) for c in held))


def _work_axes(node: Node, of: Mapping[str, Mapping[int, Ids]]) -> tuple[Ids, ...]:
    """Work goes with every axis of the output, and with what is summed over."""
    if node.op in ("Conv", "ConvTranspose"):
        w = of.get(node.inputs[1].name, {})
        return tuple(w[axis] for axis in (0, 1) if axis in w)
    found = list(of.get(node.outputs[0].name, {}).values()) if node.outputs else []
    w = of.get(node.inputs[1].name, {}) if len(node.inputs) > 1 and isinstance(node.inputs[1], Constant) else {}
    summed = 1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0
    return (*found, w[summed]) if summed in w else tuple(found)
