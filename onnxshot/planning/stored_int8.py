"""Choose weights of float ops that are stored as int8 in the file and converted to float once, when it is loaded.

Runtimes fold int8 -> Cast -> Mul(scale) when they create a session. ONNX Runtime 1.18 to 1.32 and OpenVINO 2026.4 were
as fast with it as with a float32 weight. A DequantizeLinear runs at each inference and cost up to 43 %
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

_MIN_ELEMENTS = 1024  # Cast, Mul and scales take some hundred bytes themselves
_MIN_TABLE = 1 << 14  # small tables often hold positions, which fixed input shapes fold away
_LEAST_SHARED = 8  # values that share a scale: with fewer, the scales take as many bytes as int8 saves
_STORED = "its weight is stored in 8 bits"


def stored_weights(
    model: Model, target: Target, recipe: Recipe, quantized: Mapping[Node, str], excluded: Collection[Node]
) -> dict[str, tuple[StoredWeight, ...]]:
    """Choose the weights that are stored as int8 although their node computes in float.

    Args:
        model: the float model.
        target: the rules of the runtime; without `Target.stores_weights` there are no such weights.
        recipe: what the user asks for.
        quantized: quantized node -> its mode.
        excluded: nodes that the user leaves in float. Their weights are not changed.

    Returns:
        Node label -> its stored weights.
    """
    if not target.stores_weights or recipe.precision != "int8":
        return {}
    found, uses = dict[str, tuple[StoredWeight, ...]](), dict[tuple[Constant, tuple[int, ...]], int]()
    nodes = [node for _, node in model.walk() if node not in quantized]
    constant = target.reads_constants if STATIC in quantized.values() else frozenset[str]()
    for node in nodes:
        stays = node in excluded or node.op in constant
        found[node.label] = () if stays else tuple(_candidates(node, per_channel=recipe.per_channel))
        for one in found[node.label]:
            key = (node.inputs[one.slot], one.axes)
            uses[key] = uses.get(key, 0) + 1
    for node in nodes:
        found[node.label] = tuple(
            one for one in found[node.label] if _all_readers_fit(model, node.inputs[one.slot], one, uses, quantized)
        )
    return {label: chosen for label, chosen in found.items() if chosen}


def with_storage_notes(model: Model, rows: Sequence[NodePlan], stored: Collection[str]) -> Iterator[NodePlan]:
    """The rows, with a remark on float nodes whose weight is stored as int8, and new rows for such embedding tables."""
    for row in rows:
        yield replace(row, reason=f"{row.reason}; {_STORED}") if row.node in stored else row
    known = {row.node for row in rows}
    for _, node in model.walk():
        if node.label in stored and node.label not in known:
            yield NodePlan(node.label, node.op, FLOAT, f"reads a table; {_STORED}")


def _candidates(node: Node, *, per_channel: bool) -> Iterator[StoredWeight]:
    """Float32 weights of the node that are large enough for int8 to save bytes."""
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


def _all_readers_fit(
    model: Model,
    weight: Constant,
    one: StoredWeight,
    uses: Mapping[tuple[Constant, tuple[int, ...]], int],
    quantized: Collection[Node],
) -> bool:
    """Whether all float readers of the weight can read it in this form; else it would be stored twice."""
    readers = sum(node not in quantized for node in weight.outputs)
    alone = weight.name not in model.tied and not edit.is_output(model, weight)
    return alone and uses[weight, one.axes] == readers
