"""float16 and bfloat16 in a model: which types and attributes they are, and whether a model has any."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto

from onnxshot.graph import Model, Node, weights

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "precision"})
"""Attributes whose value is an element type. ONNX Operator Schemas up to opset 26; com.microsoft 1."""


def holds_half(model: Model) -> bool:
    """Return whether a constant, attribute or stated tensor type of the model is float16 or bfloat16."""
    if model.envelope.functions and any(proto_has_half(n) for f in model.envelope.functions for n in f.node):
        return True
    infos = (info for graph in model.graphs() for info in graph.value_infos.values())
    return (
        any(elem_type(info.type) in HALF_TYPES for info in infos)
        or any(weights.elem_type(c) in HALF_TYPES for c in model.constants())
        or any(has_half(node) for _, node in model.walk())
    )


def elem_type(kind: TypeProto) -> int:
    """Return the element type of a tensor, sequence or optional; 0 for other types and unknown ones."""
    while not kind.HasField("tensor_type"):
        if kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        elif kind.HasField("optional_type"):
            kind = kind.optional_type.elem_type
        else:
            return 0
    return int(kind.tensor_type.elem_type)


def has_half(node: Node) -> bool:
    """Return whether an attribute of the node names or contains float16 or bfloat16."""
    return any(
        (key in TYPE_ATTRIBUTES and isinstance(value, int) and value in HALF_TYPES)
        or (isinstance(value, AttributeProto) and value.t.data_type in HALF_TYPES)
        for key, value in node.attrs.items()
    )


def proto_has_half(node: Any) -> bool:
    """Return whether an attribute of a NodeProto names or contains float16 or bfloat16."""
    return any(
        (a.name in TYPE_ATTRIBUTES and a.i in HALF_TYPES) or a.t.data_type in HALF_TYPES for a in node.attribute
    )
