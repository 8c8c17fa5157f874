"""Rules of `axis_coupling` for layers and elementwise operators: one function per kind, one table row per operator.

A rule returns None, or the reason why nothing that the node reads can be pruned. Source: ONNX Operators.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor
from onnxshot.graph.axis_coupling import (
    Axes,
    Ids,
    Rule,
    Shape,
    Tracker,
    couple_operands,
    freeze_other_axes,
    given_axes,
    normal,
)
from onnxshot.graph.axis_move_rules import MOVES


def follow(model: Model, shapes: Mapping[str, Shape]) -> Axes:
    """Number the axes of a model's top-level graph.

    Args:
        model: the model.
        shapes: tensor name -> concrete shape.
    """
    tracker = Tracker(model, shapes)
    for node in model.graph.nodes:
        tracker.follow(node, RULES)
        if node.inputs and isinstance(node.inputs[0], Constant) and node.op not in ("Concat", *_BROADCAST):
            reason = f"{node.op} {node.label!r} has the constant {node.inputs[0].name!r} as its first input"
            tracker.freeze(node.inputs[0], None, reason)
    return tracker.result()


# ---------------------------------------------------------------------- layers


def _conv(t: Tracker, node: Node) -> str | None:
    x, w, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if not isinstance(w, Constant):
        return f"the weight of {node.op} {node.label!r} is computed"
    groups, given = int(node.attrs.get("group", 1)), t.ids(x, 1)
    outputs = t.sizes(out)[1]
    if groups > 1 and t.sizes(w)[1] == 1 and given is not None:  # depthwise: one filter per input channel
        made = given.repeat(outputs // groups)
        t.couple_constant(w, 0, made)
    else:
        # All groups lose the same positions, so the numbers of one group stand for all groups.
        own = None if given is None else given.reshape(groups, -1)
        for other in () if own is None else own[1:]:
            assert own is not None
            t.couple(own[0], other)
        if own is not None:
            t.record_inputs(node, own[0])
        t.couple_constant(w, 1, None if own is None else own[0])
        made = np.tile(t.new_numbers(outputs // groups), groups)
        t.couple_constant(w, 0, made)
        t.record_outputs(node, made)
    _bias(t, node, 2, made)
    t.number(out, 1, made)
    freeze_other_axes(t, node)
    return None


def _conv_transpose(t: Tracker, node: Node) -> str | None:
    x, w, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if not isinstance(w, Constant):
        return f"the weight of {node.op} {node.label!r} is computed"
    if int(node.attrs.get("group", 1)) != 1:
        return f"ConvTranspose {node.label!r} has groups"
    freeze_other_axes(t, node)
    given = t.ids(x, 1)
    if given is not None:
        t.record_inputs(node, given)
    made = t.new_numbers(t.sizes(out)[1])
    t.couple_constant(w, 0, given)
    t.couple_constant(w, 1, made)
    t.record_outputs(node, made)
    _bias(t, node, 2, made)
    t.number(out, 1, made)
    return None


def _bias(t: Tracker, node: Node, slot: int, made: Ids) -> None:
    if slot >= len(node.inputs) or not node.inputs[slot].name:
        return
    bias = node.inputs[slot]
    rank = len(t.sizes(bias))
    if rank and t.sizes(bias)[-1] == len(made) and len(made) > 1:
        t.couple_constant(bias, rank - 1, made)


def _gemm(t: Tracker, node: Node) -> str | None:
    x, w, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if not isinstance(w, Constant) or node.attrs.get("transA", 0):
        return f"Gemm {node.label!r} has a computed weight, or transA"
    if len(node.inputs) > 2 and node.inputs[2].name and not isinstance(node.inputs[2], Constant):
        return f"the bias of Gemm {node.label!r} is computed"
    turned = bool(node.attrs.get("transB", 0))
    return _linear(t, node, x, w, out, 1 if turned else 0)


def _linear(t: Tracker, node: Node, x: Tensor, w: Tensor, out: Tensor, in_axis: int) -> str | None:
    last = len(t.sizes(x)) - 1
    given = t.ids(x, last)
    if given is not None:
        t.record_inputs(node, given)
    t.couple_constant(w, in_axis, given)
    made = t.new_numbers(t.sizes(w)[1 - in_axis])
    t.couple_constant(w, 1 - in_axis, made)
    t.record_outputs(node, made)
    _bias(t, node, 2, made)
    for axis in t.axes(x):
        ids = t.ids(x, axis)
        if axis != last and ids is not None:
            t.number(out, axis, ids)
    t.number(out, last, made)
    return None


def _matmul(t: Tracker, node: Node) -> str | None:
    a, b, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if isinstance(b, Constant) and len(t.sizes(b)) == 2 and len(t.sizes(a)) >= 2:
        return _linear(t, node, a, b, out, 0)
    rank = len(t.sizes(out))
    if isinstance(a, Constant) or isinstance(b, Constant) or len(t.sizes(a)) != rank or len(t.sizes(b)) != rank:
        return f"MatMul {node.label!r} has its weight on the left, or operands of different rank"
    for tensor, axis in ((a, rank - 1), (b, rank - 2)):
        t.freeze(tensor, axis, f"MatMul {node.label!r} sums over it, and has no weight that could compensate")
    for axis in range(rank - 2):
        ids = couple_operands(t, [(a, axis), (b, axis)], f"MatMul {node.label!r}")
        if ids is not None:
            t.number(out, axis, ids)
            t.record_heads(ids)
    t.pass_on(a, out, {rank - 2: rank - 2, **{i: i for i in range(rank - 2)}}, "summed over")
    t.pass_on(b, out, {rank - 1: rank - 1, **{i: i for i in range(rank - 2)}}, "summed over")
    return None


# ---------------------------------------------------------------------- elementwise


def _broadcast(t: Tracker, node: Node) -> str | None:
    out = node.outputs[0]
    rank = len(t.sizes(out))
    for axis in range(rank):
        parties = [
            (tensor, axis - rank + len(t.sizes(tensor)))
            for tensor in node.inputs
            if tensor.name and axis - rank + len(t.sizes(tensor)) >= 0
        ]
        ids = couple_operands(t, parties, f"{node.op} {node.label!r}")
        if ids is not None:
            t.number(out, axis, ids)
    return None


def _pointwise(t: Tracker, node: Node) -> str | None:
    for out in node.outputs:
        if out.name:
            t.pass_on(node.inputs[0], out, _all_axes(t, node.inputs[0]), "")
    return None


def _all_axes(t: Tracker, tensor: Tensor) -> dict[int, int]:
    return {axis: axis for axis in range(len(t.sizes(tensor)))}


def _per_channel(t: Tracker, node: Node) -> str | None:
    """BatchNormalization and InstanceNormalization: parameters [C], one per channel."""
    if any(out.name for out in node.outputs[1:]):
        return f"{node.op} {node.label!r} is in training mode"
    for tensor in node.inputs[1:]:
        if not isinstance(tensor, Constant):
            return f"a parameter of {node.op} {node.label!r} is computed"
        t.couple_constant(tensor, 0, t.ids(node.inputs[0], 1))
    t.pass_on(node.inputs[0], node.outputs[0], {0: 0, 1: 1}, f"{node.op} {node.label!r} computes across it")
    return None


def _pooled(t: Tracker, node: Node) -> str | None:
    if any(out.name for out in node.outputs[1:]):
        return f"{node.op} {node.label!r} also outputs indices"
    t.pass_on(node.inputs[0], node.outputs[0], {0: 0, 1: 1}, f"{node.op} {node.label!r} computes across it")
    return None


def _over_axis(t: Tracker, node: Node) -> str | None:
    """Softmax and LayerNormalization: the axes that they normalize over cannot be pruned."""
    x, rank = node.inputs[0], len(t.sizes(node.inputs[0]))
    first = normal(int(node.attrs.get("axis", -1 if t.model.opset >= 13 or node.op[0] == "L" else 1)), rank)
    one = node.op in ("Softmax", "LogSoftmax") and t.model.opset >= 13
    over = {first} if one else set(range(first, rank))
    for tensor in node.inputs[1:]:
        t.freeze(tensor, None, f"{node.op} {node.label!r} computes across it")
    kept = {axis: axis for axis in range(rank) if axis not in over}
    t.pass_on(x, node.outputs[0], kept, f"{node.op} {node.label!r} computes across it")
    return None


def _reduced(t: Tracker, node: Node) -> str | None:
    rank = len(t.sizes(node.inputs[0]))
    over = given_axes(node, 1, rank)
    if over is None:
        return f"the axes of {node.op} {node.label!r} are computed"
    kept = [axis for axis in range(rank) if axis not in over]
    places = kept if node.attrs.get("keepdims", 1) else range(len(kept))
    how = dict(zip(kept, places, strict=True))
    t.pass_on(node.inputs[0], node.outputs[0], how, f"{node.op} {node.label!r} computes across it")
    return None


_POINTWISE = (
    "Abs", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Sin", "Cos", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu", "Floor", "Ceil",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCED = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")

RULES: dict[str, Rule] = {
    **MOVES,
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), _pooled),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"), _over_axis),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
