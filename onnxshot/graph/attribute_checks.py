"""Check attribute values that ONNX's checker accepts but nothing can compute, such as strides of 0.

ONNX Runtime refuses such models too, but for some only when it runs them, and for some by ending the process. Sources:
ONNX Operator Schemas up to opset 26; the checks in ONNX's shape inference (convPoolShapeInference, TransposeOp).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

from onnx import AttributeProto, ModelProto, NodeProto

from onnxshot.errors import ModelError
from onnxshot.graph.local_functions import all_nodes

_WINDOW: Mapping[str, int] = MappingProxyType({"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0})
_CONV: Mapping[str, int] = MappingProxyType({**_WINDOW, "group": 1})
_CELLS: Mapping[str, int] = MappingProxyType({"hidden_size": 1})
LEAST: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "Conv": _CONV, "ConvInteger": _CONV, "QLinearConv": _CONV, "FusedConv": _CONV, "DeformConv": _CONV,
        "ConvTranspose": MappingProxyType({**_CONV, "output_padding": 0}),
        "MaxPool": _WINDOW, "AveragePool": _WINDOW, "LpPool": _WINDOW, "QLinearAveragePool": _WINDOW,
        "MaxUnpool": _WINDOW,
        "LSTM": _CELLS, "GRU": _CELLS, "RNN": _CELLS,
        "DepthToSpace": MappingProxyType({"blocksize": 1}), "SpaceToDepth": MappingProxyType({"blocksize": 1}),
        "GroupNormalization": MappingProxyType({"num_groups": 1}), "LRN": MappingProxyType({"size": 1}),
        "Split": MappingProxyType({"num_outputs": 1}), "TopK": MappingProxyType({"k": 0}),
    }
)  # fmt: skip
"""Operator -> attribute -> smallest allowed value of the attribute, or of each of its elements."""
MOST = 1 << 31
"""Largest allowed value; no axis of a tensor that fits into memory is as long."""


def check_attributes(proto: ModelProto) -> None:
    """Check the attributes of all nodes, also of subgraphs and local functions.

    Raises:
        ModelError: an attribute is out of range or given twice, or a permutation is invalid; with the node.
    """
    for node in itertools.chain(all_nodes(proto.graph.node), *(all_nodes(f.node) for f in proto.functions)):
        names = [a.name for a in node.attribute]
        for attribute in node.attribute:
            if names.count(attribute.name) > 1:
                raise ModelError(f"{_label(node)} has the attribute {attribute.name!r} twice")
            if attribute.ref_attr_name:
                continue
            least = LEAST.get(node.op_type, {}).get(attribute.name)
            if least is not None:
                _check(node, attribute, least)
            if node.op_type == "Transpose" and attribute.name == "perm":
                _check_permutation(node, list(attribute.ints))


def _check(node: NodeProto, attribute: AttributeProto, least: int) -> None:
    values = [attribute.i] if attribute.type == AttributeProto.INT else list(attribute.ints)
    bad = next((v for v in values if not least <= v <= MOST), None)
    if bad is not None:
        what = f"{attribute.name} is {values if attribute.type == AttributeProto.INTS else bad}"
        raise ModelError(f"{_label(node)}: {what}; {least} to {MOST} is allowed", "export the model again")


def _check_permutation(node: NodeProto, perm: list[int]) -> None:
    if sorted(perm) != list(range(len(perm))):
        raise ModelError(f"{_label(node)}: perm is {perm}, which does not name every axis once")


def _label(node: NodeProto) -> str:
    name = node.name or next((name for name in node.output if name), "") or "?"
    return f"node {name!r} ({node.op_type})"
