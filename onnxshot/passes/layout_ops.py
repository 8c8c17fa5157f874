"""Table of the operators that can be written in either layout, and the changes of elementwise operators.

An operator without an entry keeps its layout. Conv has none: its channels come first by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import layout_ops_axes, layout_ops_reshape
from onnxshot.passes.layout_change import (
    CannotChange,
    Case,
    LayoutChange,
    nothing,
    turned_constant,
)
from onnxshot.passes.linear_ops import fixed

SHARED_BYTES = 4096
"""Constants above this many bytes that other nodes read too are not stored a second time in another layout."""


def change_of(model: Model, node: Node, layout: int) -> LayoutChange | None:
    """The change that converts a node from the other layout to this one; None if the node must keep its layout."""
    row = _ROWS.get(node.op) if node.domain in STANDARD_DOMAINS else None
    if row is None or not node.inputs or not node.outputs:
        return None
    try:
        return row(Case(model, node, layout))
    except CannotChange:
        return None


def _unary(case: Case) -> LayoutChange:
    """Elementwise operators of one tensor; their other inputs are single numbers."""
    for tensor in case.node.inputs[1:]:
        if tensor.name and (case.rank(tensor) > 1 or (case.rank(tensor) == 1 and case.model.shape(tensor) != (1,))):
            raise CannotChange
    return LayoutChange(case.same_shape(), nothing)


def _quantized(case: Case) -> LayoutChange:
    """QuantizeLinear and DequantizeLinear, per tensor or along one axis; not in blocks."""
    node = case.node
    if max(case.rank(t) for t in node.inputs[1:] if t.name) == 0:
        return LayoutChange(case.same_shape(), nothing)
    if any(case.rank(t) > 1 for t in node.inputs[1:] if t.name) or node.attrs.get("block_size", 0):
        raise CannotChange
    return _along_axis(1)(case)


def _broadcast(case: Case) -> LayoutChange:
    """Elementwise operators of several tensors, with broadcasting; constants are transposed."""
    node = case.node
    rank = case.layout_rank(node.outputs[0])
    if "axis" in node.attrs or node.attrs.get("broadcast", 0):
        raise CannotChange  # broadcasting by attribute, before opset 7
    tensors: list[Tensor] = [node.outputs[0]]
    for tensor in node.inputs:
        if not tensor.name:
            continue
        if fixed(tensor):
            shared = len(edit.consumers(tensor)) > 1 or edit.is_output(case.model, tensor)
            if case.rank(tensor) > rank or (shared and weights.size_bytes(tensor) > SHARED_BYTES):
                raise CannotChange
        elif case.rank(tensor) == rank and not isinstance(tensor, Constant):
            tensors.append(tensor)
        elif any(d != 1 for d in case.model.shape(tensor) or ()):
            raise CannotChange

    def write(model: Model, layout: int) -> None:
        for slot, tensor in enumerate(node.inputs):
            if tensor.name and fixed(tensor) and math.prod(tensor.shape) != 1:
                node.inputs[slot] = turned_constant(model, node, tensor, rank, layout)

    return LayoutChange(tuple(tensors), write)


def _along_axis(default: int, *, scan_cost: bool = False, since: int = 1) -> Callable[[Case], LayoutChange]:
    """Operators with an attribute `axis` whose inputs and outputs all have the same rank.

    Args:
        default: Default of `axis`.
        scan_cost: Whether kernels are faster along the last axis.
        since: First opset in which the operator works along one axis.
    """

    def row(case: Case) -> LayoutChange:
        node = case.node
        if case.model.opset < since:
            raise CannotChange  # older versions flatten all axes from `axis` on
        tensors = case.same_shape()
        rank = case.layout_rank(tensors[0])
        if node.op == "Concat":
            tensors = (*tensors, *node.inputs[1:])
            if any(case.layout_rank(t) != rank for t in tensors):
                raise CannotChange
        given = int(node.attrs.get("axis", default)) % rank
        axis = case.axis(given, rank)

        def write(_model: Model, _layout: int) -> None:
            node.attrs["axis"] = axis

        return LayoutChange(tensors, write, scan_cost=(axis != rank - 1) - (given != rank - 1) if scan_cost else 0)

    return row


_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "BitwiseNot",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = (
    "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
)  # fmt: skip

_ROWS: dict[str, Callable[[Case], LayoutChange]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **{f"Reduce{name}": layout_ops_axes.reduce for name in _REDUCE},
    "ArgMax": layout_ops_axes.arg_reduce,
    "ArgMin": layout_ops_axes.arg_reduce,
    "Concat": _along_axis(1),
    "DequantizeLinear": _quantized,
    "Expand": layout_ops_axes.expand,
    "Flatten": layout_ops_reshape.flatten,
    "Gather": layout_ops_axes.gather,
    "Hardmax": _along_axis(-1, scan_cost=True, since=13),
    "LogSoftmax": _along_axis(-1, scan_cost=True, since=13),
    "LpNormalization": _along_axis(-1),
    "Pad": layout_ops_axes.pad,
    "QuantizeLinear": _quantized,
    "Reshape": layout_ops_reshape.reshape,
    "Resize": layout_ops_axes.resize,
    "Shape": layout_ops_reshape.shape,
    "Size": layout_ops_reshape.size,
    "Slice": layout_ops_axes.slice_,
    "Softmax": _along_axis(-1, scan_cost=True, since=13),
    "Split": _along_axis(0),
    "Squeeze": layout_ops_axes.squeeze,
    "Tile": layout_ops_axes.tile,
    "Unsqueeze": layout_ops_axes.unsqueeze,
    "Upsample": layout_ops_axes.resize,
}
