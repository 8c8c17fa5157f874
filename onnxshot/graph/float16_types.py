"""Floats of 16 bits in a model: their types, and whether it holds any."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto

from onnxshot.graph import Model, Node, weights

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "precision"})
"""Attributes that hold an element type. ONNX Operator Schemas up to opset 26; com.microsoft 1."""


def holds_half(model: Model) -> bool:
    """Whether the model has a tensor or a constant of 16-bit floats, as far as it says so itself."""
    if model.envelope.functions and any(proto_has_half(n) for f in model.envelope.functions for n in f.node):
        return True
    infos = (info for graph in model.graphs() for info in graph.value_infos.values())
    return (
        any(elem_type(info.type) in HALF_TYPES for info in infos)
        or any(weights.elem_type(c) in HALF_TYPES for c in model.constants())
        or any(has_half(node) for _, node in model.walk())
    )


def elem_type(kind: TypeProto) -> int:
    """The element type of a tensor, sequence or optional; 0 where it has none."""
    """The type of the values of a tensor, a sequence or an optional; 0 where it is none of them, or not known."""
    while not kind.HasField("tensor_type"):
        if kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        elif kind.HasField("optional_type"):
            kind = kind.optional_type.elem_type
        else:
            return 0
    return int(kind.tensor_type.elem_type)


def has_half(node: Node) -> bool:
    """Whether an attribute of the node asks for, or holds, floats of 16 bits."""
    return any(
        (key in TYPE_ATTRIBUTES and isinstance(value, int) and value in HALF_TYPES)
        or (isinstance(value, AttributeProto) and value.t.data_type in HALF_TYPES)
        for key, value in node.attrs.items()
    )


def proto_has_half(node: Any) -> bool:
    """The same of a NodeProto."""
    return any(
        (a.name in TYPE_ATTRIBUTES and a.i in HALF_TYPES) or a.t.data_type in HALF_TYPES for a in node.attribute
    )
