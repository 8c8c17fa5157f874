"""ONNX's checker, but for what it refuses although the specification has it and runtimes run it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

_UNCHECKED = "onnxshot.unchecked"  # a domain whose nodes the checker does not look into
_REFUSED = {"GroupNormalization": (18, 20)}  # deprecated without a successor until opset 21; exporters write it


def check(proto: ModelProto) -> None:
    """Hold a model against ONNX's checker, which is not asked for a shape of inputs and outputs.

    Changes the model: it is to be a copy. Raises onnx.checker.ValidationError, RuntimeError.
    """
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()  # the checker asks for a shape; runtimes and exporters do not
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    refused = {op for op, (first, last) in _REFUSED.items() if first <= opset <= last}
    found = [node for node in _nodes(proto.graph) if node.op_type in refused and node.domain in ("", "ai.onnx")]
    for node in found:
        node.domain = _UNCHECKED
    if found:
        proto.opset_import.append(onnx.helper.make_opsetid(_UNCHECKED, 1))
    onnx.checker.check_model(proto)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
