"""The operator table: what quantization and pruning need to know about each operator, one row per operator.

Sources: ONNX Operator Schemas up to opset 26; ONNX Runtime's contrib operators for the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxshot.graph import weights
from onnxshot.graph.ir import Constant, Node


@dataclass(frozen=True, slots=True)
class Op:
    """A row of the operator table.

    Attributes:
        weights: input slots that may hold a weight, in order of preference; the first constant one is the weight.
        bias: input slot of the bias; None for operators without one.
        keeps_range: whether every value of output 0 is in the range of input 0, or is 0, so that both can share scale
            and zero point.
        data: input slots of activations; None for all.
    """

    weights: tuple[int, ...] = ()
    bias: int | None = None
    keeps_range: bool = False
    data: tuple[int, ...] | None = None


_MOVES_DATA = Op(keeps_range=True, data=(0,))

OPS: dict[str, Op] = {
    "Conv": Op(weights=(1,), bias=2, data=(0,)),
    "ConvTranspose": Op(weights=(1,), bias=2, data=(0,)),
    "Gemm": Op(weights=(1, 0), bias=2, data=(0, 1)),
    "MatMul": Op(weights=(1, 0), data=(0, 1)),
    "LSTM": Op(weights=(1, 2), bias=3, data=(0,)),
    "GRU": Op(weights=(1, 2), bias=3, data=(0,)),
    "RNN": Op(weights=(1, 2), bias=3, data=(0,)),
    "Gather": Op(keeps_range=True, data=(0,)),
    "DepthToSpace": _MOVES_DATA,
    "Expand": _MOVES_DATA,
    "Flatten": _MOVES_DATA,
    "GatherElements": _MOVES_DATA,
    "GatherND": _MOVES_DATA,
    "GlobalMaxPool": _MOVES_DATA,
    "Identity": _MOVES_DATA,
    "MaxPool": _MOVES_DATA,
    "Pad": _MOVES_DATA,
    "Reshape": _MOVES_DATA,
    "Resize": _MOVES_DATA,
    "Slice": _MOVES_DATA,
    "SpaceToDepth": _MOVES_DATA,
    "Split": _MOVES_DATA,
    "Squeeze": _MOVES_DATA,
    "Tile": _MOVES_DATA,
    "Transpose": _MOVES_DATA,
    "Unsqueeze": _MOVES_DATA,
    "Upsample": _MOVES_DATA,
    "AveragePool": Op(data=(0,)),
    "GlobalAveragePool": Op(data=(0,)),
    "ReduceMean": Op(data=(0,)),
    "Clip": Op(data=(0,)),
    "Relu": Op(data=(0,)),
    "LeakyRelu": Op(data=(0,)),
    "HardSigmoid": Op(data=(0,)),
    "HardSwish": Op(data=(0,)),
    "Sigmoid": Op(data=(0,)),
    "Softmax": Op(data=(0,)),
    "Tanh": Op(data=(0,)),
    "Add": Op(),
    "Sub": Op(),
    "Mul": Op(),
    "Div": Op(),
    "Concat": Op(),
}

_UNKNOWN = Op()
STANDARD_DOMAINS = (None, "", "ai.onnx")
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that draw random numbers."""


def _pads_with_zero(node: Node) -> bool:
    """Whether Pad adds no new value but 0, given as attribute `value` (Pad-1, Pad-2) or input 2 (Pad-11)."""
    if node.attrs.get("mode", b"constant") != b"constant":
        return True
    given = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if given is None:
        return not node.attrs.get("value", 0.0)
    return isinstance(given, Constant) and not np.any(weights.read(given))


def _resize_keeps_range(node: Node) -> bool:
    """Whether a Resize keeps the range of its input; cubic interpolation overshoots, and cropping adds a value."""
    crops = node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    return node.attrs.get("mode", b"nearest") != b"cubic" and not crops


_KEEPS_RANGE_IF: dict[str, Callable[[Node], bool]] = {"Pad": _pads_with_zero, "Resize": _resize_keeps_range}


def op_of(node: Node) -> Op:
    """Return the table row of the node's operator; an empty row for unknown and custom operators."""
    if node.domain not in STANDARD_DOMAINS:
        return _UNKNOWN
    row = OPS.get(node.op, _UNKNOWN)
    if node.op in _KEEPS_RANGE_IF and not _KEEPS_RANGE_IF[node.op](node):
        return replace(row, keeps_range=False)
    return row


def moves_exactly(node: Node) -> bool:
    """Return whether every output value is one of input 0, or 0, so that quantizing before or after gives the same."""
    return op_of(node).keeps_range and node.attrs.get("mode", b"nearest") not in (b"linear", b"cubic")


def weight_slot(node: Node) -> int | None:
    """Return the input slot of the node's constant weight; None where it has none."""
    return next(
        (i for i in op_of(node).weights if i < len(node.inputs) and isinstance(node.inputs[i], Constant)), None
    )


def channel_axis(node: Node, slot: int, rank: int) -> int | None:
    """Return the axis of a weight for per-channel scales: that of the output channels.

    Args:
        node: the node that reads the weight.
        slot: its input slot.
        rank: rank of the weight.

    Returns:
        Conv [O, I/g, *k]: 0. ConvTranspose [I, O/g, *k]: 1; the groups share scales. Gemm: 1, or 0 if transposed.
        MatMul: the last axis of the right operand [.., K, N], the last but one of the left operand [.., M, K]. LSTM,
        GRU, RNN [directions, gates * H, I]: 1. None for other operators.
    """
    if node.op == "Conv":
        return 0
    if node.op in ("ConvTranspose", "LSTM", "GRU", "RNN"):
        return 1
    if node.op == "Gemm":
        transposed = bool(node.attrs.get("transB" if slot == 1 else "transA", 0))
        return (0 if transposed else 1) if slot == 1 else (1 if transposed else 0)
    if node.op == "MatMul" and rank >= 2:
        return rank - 1 if slot == 1 else rank - 2
    return None


def scale_axes(node: Node, slot: int, rank: int) -> tuple[int, ...] | None:
    """Return the axes of a weight-only quantized weight along which each index has a scale of its own.

    They are the axes that the operator does not sum over.

    Args:
        node: the node that reads the weight.
        slot: its input slot.
        rank: rank of the weight.

    Returns:
        MatMul, right operand [experts, K, N]: per expert and column. LSTM, GRU, RNN [directions, gates * H, I]: per
        direction and row. Einsum: the letters that the result has too. Gather: all axes of the table but the last.
        Others: the axis of `channel_axis`. None where the input is not a weight, or every value would need a scale.
    """
    if node.domain not in STANDARD_DOMAINS or rank < 2:
        return None
    if node.op == "Einsum":
        return _einsum_kept_axes(node, slot, rank)
    if node.op == "Gather":
        return tuple(range(rank - 1)) if slot == 0 else None
    if slot not in op_of(node).weights:
        return None
    axis = channel_axis(node, slot, rank)
    if node.op == "MatMul":
        return tuple(i for i in range(rank) if i == axis or i < rank - 2)
    if node.op in ("LSTM", "GRU", "RNN"):
        return (0, 1)
    return None if axis is None else (axis,)


def _einsum_kept_axes(node: Node, slot: int, rank: int) -> tuple[int, ...] | None:
    """Axes of an Einsum operand that its result has too; None where that is unknown or all of them."""
    equation = node.attrs.get("equation", b"")
    text = equation.decode(errors="replace") if isinstance(equation, bytes) else str(equation)
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in text or slot >= len(terms) or len(terms[slot]) != rank:
        return None
    axes = tuple(i for i, letter in enumerate(terms[slot]) if letter in right)
    return axes if len(axes) < rank else None


def data_slots(node: Node) -> list[int]:
    """Return the input slots of activations: present, not constant, and not parameters such as shapes."""
    slots = op_of(node).data
    candidates = range(len(node.inputs)) if slots is None else slots
    return [
        i
        for i in candidates
        if i < len(node.inputs) and node.inputs[i].name and not isinstance(node.inputs[i], Constant)
    ]
