"""Weights of ops that compute in float: stored in 8 bits all the same, where a runtime makes floats of them once.

int8 -> Cast -> Mul(scale) is computed when a session is made, and never again: ONNX Runtime 1.18 to 1.32 and OpenVINO
2026.4 were as fast with it as with a float32 weight, where a DequantizeLinear, which is run every time, cost up to 43 %
(benchmarks/stored_weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import scale_axes
from onnxshot.planning.plan import FLOAT, STATIC, NodePlan, StoredWeight
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_MIN_ELEMENTS = 1024  # Cast, Mul and scales cost some hundred bytes themselves
_MIN_TABLE = 1 << 14  # a small table is often one of positions, which is gone where sizes are frozen
_LEAST_SHARED = 8  # values that share a scale: with fewer, scales are as large as what is saved
_STORED = "its weight is stored in 8 bits"


def stored_weights(
    model: Model, target: Target, recipe: Recipe, quantized: Mapping[Node, str], left: Collection[Node]
) -> dict[str, tuple[StoredWeight, ...]]:
    """The weights that are stored in 8 bits, by name of the node; its op computes in float.

    quantized: nodes that do not read their float weights any more, and how they are; left: those that the user has
    left out.
    """
    if not target.stores_weights or recipe.precision != "int8":
        return {}
    found, places = dict[str, tuple[StoredWeight, ...]](), dict[tuple[Constant, tuple[int, ...]], int]()
    nodes = [node for _, node in model.walk() if node not in quantized]
    constant = target.reads_constants if STATIC in quantized.values() else frozenset[str]()
    for node in nodes:
        stays = node in left or node.op in constant
        found[node.label] = () if stays else tuple(_candidates(node, per_channel=recipe.per_channel))
        for one in found[node.label]:
            key = (node.inputs[one.slot], one.axes)
            places[key] = places.get(key, 0) + 1
    for node in nodes:
        found[node.label] = tuple(
            one for one in found[node.label] if _everywhere(model, node.inputs[one.slot], one, places, quantized)
        )
    return {label: chosen for label, chosen in found.items() if chosen}


def told(model: Model, rows: Sequence[NodePlan], stored: Collection[str]) -> Iterator[NodePlan]:
    """The rows; those of nodes in float say so where their weight is stored in 8 bits, and then tables have one too."""
    for row in rows:
        yield replace(row, reason=f"{row.reason}; {_STORED}") if row.node in stored else row
    known = {row.node for row in rows}
    for _, node in model.walk():
        if node.label in stored and node.label not in known:
            yield NodePlan(node.label, node.op, FLOAT, f"reads a table; {_STORED}")


def _candidates(node: Node, *, per_channel: bool) -> Iterator[StoredWeight]:
    for slot, weight in enumerate(node.inputs):
        if not isinstance(weight, Constant) or getattr(weight, "overridable", False):
            continue
        axes = scale_axes(node, slot, len(weight.shape))
        if axes is None or weights.elem_type(weight) != TensorProto.FLOAT:
            continue
        size, scales = math.prod(weight.shape), math.prod(weight.shape[axis] for axis in axes) if per_channel else 1
        least = _MIN_TABLE if node.op == "Gather" else _MIN_ELEMENTS
        if size >= max(least, _LEAST_SHARED * scales):
            yield StoredWeight(slot, axes if per_channel else ())


def _everywhere(
    model: Model,
    weight: Constant,
    one: StoredWeight,
    places: Mapping[tuple[Constant, tuple[int, ...]], int],
    quantized: Collection[Node],
) -> bool:
    """Whether all that read the weight, or an equal one, in float read it so: else it would be stored twice."""
    readers = sum(node not in quantized for node in weight.outputs)
    alone = weight.name not in model.tied and not edit.is_output(model, weight)
    return alone and places[weight, one.axes] == readers
