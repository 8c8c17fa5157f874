"""Cross-layer equalization: scale channels up where they are made, and the weights that read them down.

Nagel et al. 2019, eq. 8 to 10. The model's answers stay the same but for rounding; a channel that a Clip cuts off is
left as it is, and one that stays below the limit on all calibration samples is scaled up to three quarters of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.stats import TensorStats
from onnxshot.graph import Model, Node, edit, weights
from onnxshot.maths.cross_layer_equalization import Reader, equalizing_factors
from onnxshot.maths.finite import finite, product
from onnxshot.passes.base import Change
from onnxshot.planning.channel_ties import Channels, Ids, channels_of
from onnxshot.planning.plan import Plan

_HEADROOM = 0.75  # of a range or a Clip's limit: samples that calibration has not seen go a little further
_WORTH = 1.05  # a model whose largest factor is below this is left alone


@dataclass(frozen=True, slots=True)
class Equalize:
    """Equalize the channels of the tensors that the plan quantizes.

    scaled: once it has run, the tensors with channels that were scaled: their statistics are out of date.
    """

    plan: Plan
    stats: Mapping[str, TensorStats]
    name: str = "equalize"
    scaled: set[str] = field(default_factory=set)

    def run(self, model: Model) -> Change:
        """Scale the weights; edits counts the channels that were scaled."""
        found = channels_of(model)
        factors = equalizing_factors(self._readers(found), self._room(found))
        change = Change(int(np.count_nonzero(factors > _WORTH)))
        if change.edits and not _scale(model, found, factors.astype(np.float32)):
            return Change()  # a weight would have become infinite
        if change.edits:
            self.scaled.update(name for name, ids in found.of.items() if (factors[ids] != 1.0).any())
        return change

    def _extremes(self, name: str, ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(least, largest value) of every channel of a tensor, where calibration saw them."""
        known = self.stats.get(name)
        if known is None or len(known.row_lows) != len(ids):
            return None
        return np.asarray(known.row_lows), np.asarray(known.row_highs)

    def _room(self, found: Channels) -> NDArray[np.float64]:
        """How far every channel may be scaled up [n]: no tensor's range may grow, and no Clip cut off more."""
        room = np.full(found.count, np.inf)
        for name, ids in found.of.items():
            extremes = self._extremes(name, ids)
            if extremes is not None:
                bounds = _HEADROOM * float(extremes[0].min()), _HEADROOM * float(extremes[1].max())
                np.minimum.at(room, ids, _up_to(extremes, bounds))
        for name, ids, limit in found.limits:
            extremes = self._extremes(name, ids)
            np.minimum.at(room, ids, 1.0 if extremes is None else _up_to(extremes, (0.0, _HEADROOM * limit)))
        room[list(found.fixed)] = 1.0
        room[~np.isfinite(room)] = 1.0  # never seen, or silent
        free: NDArray[np.float64] = np.maximum(room, 1.0)
        return free

    def _readers(self, found: Channels) -> list[Reader]:
        readers = []
        for node, ids in found.read_by:
            planned = self.plan.tensors.get(node.inputs[0].name)
            extremes = self._extremes(planned.source if planned is not None else "", ids)
            if planned is None or extremes is None:
                continue
            weight, groups = _table(node), _groups(node)
            absmax = np.maximum(-extremes[0], extremes[1]).reshape(groups, -1)
            step = float(self.plan.params[planned.group].scale)
            readers.append(Reader(np.abs(weight.astype(np.float64)), ids.reshape(groups, -1), absmax, step))
        return readers


def _up_to(
    extremes: tuple[NDArray[np.float64], NDArray[np.float64]], bounds: tuple[float, float]
) -> NDArray[np.float64]:
    """Factor by which every channel may grow before it leaves the bounds, which hold zero; infinite where silent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(extremes[0] < 0, min(bounds[0], 0.0) / extremes[0], np.inf)
        above = np.where(extremes[1] > 0, max(bounds[1], 0.0) / extremes[1], np.inf)
    found: NDArray[np.float64] = np.minimum(below, above)
    return found


def _groups(node: Node) -> int:
    return int(node.attrs.get("group", 1)) if node.op == "Conv" else 1


def _table(node: Node) -> NDArray[Any]:
    """The weight of a Conv or Gemm as [groups, outputs per group, inputs per group, kernel]."""
    weight = np.asarray(weights.read(node.inputs[1]))
    if node.op == "Gemm":
        weight = weight if node.attrs.get("transB", 0) else weight.T
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _scale(model: Model, found: Channels, factors: NDArray[np.float32]) -> bool:
    """Multiply what makes the channels, divide what reads them; False, and nothing done, where a value overflows.

    A Conv often does both.
    """
    made = {node: factors[ids] for node, ids in found.made_by}
    read = {node: factors[ids] for node, ids in found.read_by}
    scaled: list[tuple[Node, int, NDArray[Any]]] = []
    for node in dict.fromkeys((*made, *read)):
        stored, shape, table = np.asarray(weights.read(node.inputs[1])), node.inputs[1].shape, _table(node).copy()
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            if node in read:
                table /= read[node].reshape(table.shape[0], 1, -1, 1)
            if node in made:
                table *= made[node].reshape(*table.shape[:2], 1, 1)
                if len(node.inputs) > 2 and node.inputs[2].name:
                    bias = product(np.asarray(weights.read(node.inputs[2])), made[node])
                    if bias is None:
                        return False
                    scaled.append((node, 2, bias))
        flat = table.reshape(table.shape[0] * table.shape[1], -1)
        turned = node.op == "Gemm" and not node.attrs.get("transB", 0)
        values = np.ascontiguousarray((flat.T if turned else flat).reshape(shape))
        if finite(stored) and not finite(values):
            return False
        scaled.append((node, 1, values))
    for node, slot, values in scaled:
        node.inputs[slot] = edit.add_constant(model, node.inputs[slot].name, "equalized", values)
    return True
