"""Estimate the bytes that Q/DQ nodes add to the file, and leave tiny layers in float if the file would grow.

In a model with hundreds of tiny layers, Q/DQ nodes and scales take more bytes than int8 weights save. A node takes the
bytes of its operator, its name and the names of its inputs and outputs, and two or more for each of these.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
from onnx import helper

from onnxshot.graph import Constant, Model, Node, weights
from onnxshot.graph.ops import op_of
from onnxshot.maths.affine import PerChannel
from onnxshot.planning.plan import STATIC, Plan, WeightPlan

_LEAST_BYTES = 1 << 14  # bytes by which any file may grow: a few small layers take as much
_SHARE = 0.03  # share of the bytes of its weights by which a file may grow
_PAIR, _PAIR_NAMES = 290, 12  # bytes of Q, DQ and scale without names; how often they repeat the tensor name
_WEIGHT, _WEIGHT_NAMES = 200, 8  # the same for the DQ of a weight, with its scale and zero point
_BIAS, _BIAS_NAMES = 170, 7  # the same for the DQ of an int32 bias
_CHANNEL = 5  # bytes of one scale and zero point
_REASON = "so small that its Q/DQ nodes take more bytes than int8 saves, as in most layers: the file would grow"


def too_small(model: Model, plan: Plan, nodes: Mapping[str, Node], forced: Container[Node]) -> dict[Node, str]:
    """Weighted nodes that stay in float as the file would grow, with the skip reason; empty if the file shrinks enough.

    Args:
        model: the float model.
        plan: the plan to check; only static plans are.
        nodes: label -> node, for the quantized nodes with a weight.
        forced: nodes that are quantized whatever they add.
    """
    if plan.mode != STATIC:
        return {}
    own: dict[Node, int] = {}
    seen: set[Constant] = set()
    for name, planned in plan.weights.items():
        node = nodes.get(name)
        if node is None or not isinstance(weight := node.inputs[planned.slot], Constant):
            continue
        saved = 0 if weight in seen else stored_bytes(weight) - weights.size_bytes(weight) // 4
        own[node] = _added(node, planned, weight, bias=op_of(node).bias) - saved
        seen.add(weight)
    pairs = {name: _PAIR + _PAIR_NAMES * len(name) for name in plan.tensors}
    stored = sum(stored_bytes(c) for c in model.constants())
    if sum(own.values()) + sum(pairs.values()) <= max(_LEAST_BYTES, _SHARE * stored):
        return {}
    each = sum(pairs.values()) / max(len(own), 1)
    return {node: _REASON for node, growth in own.items() if growth + each > 0 and node not in forced}


def stored_bytes(constant: Constant) -> int:
    """Bytes that a constant takes in the input file, for example half as many if it was stored as float16."""
    kind = int(getattr(constant, "stored_as", 0) or 0)
    if not kind:
        return weights.size_bytes(constant)
    return int(np.prod(constant.shape, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(kind).itemsize


def _added(node: Node, planned: WeightPlan, weight: Constant, bias: int | None) -> int:
    """Bytes that the DequantizeLinear nodes of weight and bias add. bias: index of the bias input."""
    granularity = planned.scheme.granularity
    channels = weight.shape[granularity.axis] if isinstance(granularity, PerChannel) else 1
    added = _WEIGHT + _WEIGHT_NAMES * len(weight.name) + _CHANNEL * channels
    if bias is not None and bias < len(node.inputs) and isinstance(node.inputs[bias], Constant):
        added += _BIAS + _BIAS_NAMES * len(node.inputs[bias].name) + 4 * channels
    return int(added)
