"""Cross-layer equalization: multiply the output channels of a Conv or Gemm, divide the weights that read them.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, eq. 8 to 10. The
float model's outputs stay the same up to rounding. A channel that a Clip cuts off on calibration data is not scaled;
one that stays below the Clip's limit on all calibration samples is scaled up to three quarters of that limit.
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

_HEADROOM = 0.75  # share of a range or a Clip's limit to use: samples outside the calibration set exceed it a little
_WORTH = 1.05  # factors up to this are not counted; a model without larger ones is not changed


@dataclass(frozen=True, slots=True)
class Equalize:
    """Equalize the channels of the tensors that the plan quantizes.

    Edits count the channels scaled by more than 5 %. Nothing is reported as skipped; the model is left unchanged if a
    scaled weight or bias would overflow its type.

    Attributes:
        plan: The plan, with the quantization parameters of each tensor.
        stats: Tensor name -> its calibration statistics, with the least and the largest value of each channel.
        scaled: Filled by `run`: tensors with scaled channels, whose statistics are out of date, by name -> factor of
            each channel (axis 1), float32 [C].
    """

    plan: Plan
    stats: Mapping[str, TensorStats]
    name: str = "equalize"
    scaled: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Scale the weights and biases."""
        found = channels_of(model)
        factors = equalizing_factors(self._readers(found), self._room(found))
        change = Change(int(np.count_nonzero(factors > _WORTH)))
        if change.edits and not _scale(model, found, factors.astype(np.float32)):
            return Change()  # a weight or bias would overflow
        if change.edits:
            scaled = {name: factors[ids].astype(np.float32) for name, ids in found.of.items()}
            self.scaled.update({name: of_channel for name, of_channel in scaled.items() if (of_channel != 1.0).any()})
        return change

    def _extremes(self, name: str, ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(least, largest value) of every channel of a tensor on calibration data; None if they are not known."""
        known = self.stats.get(name)
        if known is None or len(known.row_lows) != len(ids):
            return None
        return np.asarray(known.row_lows), np.asarray(known.row_highs)

    def _room(self, found: Channels) -> NDArray[np.float64]:
        """Largest factor of every channel [n] for which no tensor's range grows and no Clip cuts off more values."""
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
        room[~np.isfinite(room)] = 1.0  # not measured, or always 0
        free: NDArray[np.float64] = np.maximum(room, 1.0)
        return free

    def _readers(self, found: Channels) -> list[Reader]:
        """Weights that read the channels, with the largest absolute value and the scale of what they read."""
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
    """Factor by which each channel may grow before it leaves the bounds, which include 0; infinite if always 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(extremes[0] < 0, min(bounds[0], 0.0) / extremes[0], np.inf)
        above = np.where(extremes[1] > 0, max(bounds[1], 0.0) / extremes[1], np.inf)
    found: NDArray[np.float64] = np.minimum(below, above)
    return found


def _groups(node: Node) -> int:
    """Number of groups of a Conv; 1 for a Gemm."""
    return int(node.attrs.get("group", 1)) if node.op == "Conv" else 1


def _table(node: Node) -> NDArray[Any]:
    """The weight of a Conv or Gemm as [groups, outputs per group, inputs per group, kernel]."""
    weight = np.asarray(weights.read(node.inputs[1]))
    if node.op == "Gemm":
        weight = weight if node.attrs.get("transB", 0) else weight.T
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _scale(model: Model, found: Channels, factors: NDArray[np.float32]) -> bool:
    """Multiply the weights that make the channels and divide those that read them; a Conv often does both.

    Returns False, with nothing changed, if a value would overflow.
    """
    made = {node: factors[ids] for node, ids in found.made_by}
    read = {node: factors[ids] for node, ids in found.read_by}
    scaled: list[tuple[Node, int, NDArray[Any]]] = []
    for node in dict.fromkeys((*made, *read)):
        stored, shape, table = np.asarray(weights.read(node.inputs[1])), node.inputs[1].shape, _table(node).copy()
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
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
