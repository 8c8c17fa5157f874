"""Embedding tables in blocks that stay integers in OpenVINO.

OpenVINO reads DequantizeLinear with blocks as Reshape -> Convert -> Subtract -> Multiply -> Reshape. Its Gather reads
integers in blocks only if the constants stand directly in front of the Convert; with a Reshape between them, the whole
table becomes floats when the model is compiled. Products take both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_MOVES = ("Reshape", "Unsqueeze", "Squeeze")
_STORED = ("u4", "i4", "u8", "i8")
_PACKED = ("u4", "i4")


def keep_tables(package: Any, model: Any) -> int:
    """Give the constants of embedding tables in blocks their final shapes. Values and outputs do not change.

    Args:
        package: The module `openvino`.
        model: OpenVINO's graph, which is changed in place.

    Returns:
        The number of tables.
    """
    made: dict[tuple[str, tuple[int, ...]], Any] = {}
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        moves = _moves(node.input_value(0).get_node())
        for move in moves:
            constant = move.input_value(0).get_node()
            key = (constant.get_name(), tuple(move.output(0).shape))
            if key not in made:
                made[key] = _reshaped(package, constant, key[1])
            move.output(0).replace(made[key].output(0))
        if moves:
            _fix_shape(package, node.input_value(0).get_node())
        found += bool(moves)
    return found


def _moves(node: Any) -> list[Any]:
    """The nodes that reshape the constants of a dequantized table; empty if the node is none, or needs nothing."""
    if node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    found, kinds = [], []
    for op in ("Multiply", "Subtract"):
        if node.get_type_name() == op:
            found.append(node.input_value(1).get_node())
            node = node.input_value(0).get_node()
    found.append(node)
    moves = []
    for part in found:
        inner = part.input_value(0).get_node() if part.get_type_name() == "Convert" else part
        source = inner.input_value(0).get_node() if inner.get_type_name() in _MOVES else inner
        if source.get_type_name() != "Constant":
            return []
        kinds.append(source.get_element_type().get_type_name())
        if inner is not source and inner.output(0).partial_shape.is_static:
            moves.append(inner)
    return moves if len(found) > 1 and kinds[-1] in _STORED else []


def _fix_shape(package: Any, reshape: Any) -> None:
    """Give a Reshape its shape as a constant: OpenVINO reads the shape of the integers."""
    if reshape.get_type_name() == "Reshape" and reshape.input_value(1).get_node().get_type_name() != "Constant":
        shape = np.array(list(reshape.output(0).shape), np.int64)
        reshape.input(1).replace_source_output(package.op.Constant(shape).output(0))


def _reshaped(package: Any, constant: Any, shape: tuple[int, ...]) -> Any:
    """A constant with the same values in another shape."""
    kind = constant.get_element_type()
    tensor = package.Tensor(kind, package.Shape(shape))  # OpenVINO's own memory, which lives as long as the constant
    if kind.get_type_name() in _PACKED:
        size = -(-math.prod(shape) // 2)
        tensor.data.reshape(-1).view(np.uint8)[:size] = np.asarray(constant.data).reshape(-1).view(np.uint8)[:size]
    else:
        tensor.data[...] = np.asarray(constant.data).reshape(tensor.data.shape)
    made = package.op.Constant(tensor)
    made.set_friendly_name(constant.get_friendly_name())
    return made
