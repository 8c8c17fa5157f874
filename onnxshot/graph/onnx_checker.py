"""ONNX's checker, but for what it refuses although the specification has it and runtimes run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

_UNCHECKED = "onnxshot.unchecked"  # a domain whose nodes the checker does not look into
_NEWEST = 1 << 30
_REFUSED = {  # operators of the default domain -> the opsets in which the checker refuses what runtimes run
    "GroupNormalization": (18, 20),  # deprecated without a successor until opset 21; exporters write it
    # ONNX Runtime has these under the default domain in every opset, and its optimizer writes them there.
    "LayerNormalization": (1, 16),
    "SimplifiedLayerNormalization": (1, _NEWEST),
    **dict.fromkeys(("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler"), (1, _NEWEST)),
    **dict.fromkeys(("ParametricSoftplus", "Scale", "ScaledTanh"), (1, _NEWEST)),
}
_IMPLIED = {
    "ai.onnx.ml": 3,
    "com.microsoft": 1,
    "com.microsoft.nchwc": 1,
    "com.microsoft.experimental": 1,
    "com.ms.internal.nhwc": 1,
}


def is_unknown(op: str, domain: str | None, opset: int) -> bool:
    """Whether ONNX's tools do not know an operator that runtimes run, in this opset."""
    first, last = _REFUSED.get(op, (1, 0))
    return domain in (None, "", "ai.onnx") and first <= opset <= last


def missing_imports(proto: ModelProto) -> dict[str, int]:
    """Domains of operators that a model uses and does not import, with the version that ONNX Runtime takes them for.

    Only of domains that it knows itself; functions of the model may be of any.
    """
    known = {entry.domain for entry in proto.opset_import} | {function.domain for function in proto.functions}
    used = {node.domain for node in _nodes(proto.graph)} - known
    return {domain: version for domain, version in _IMPLIED.items() if domain in used}


def loads(source: Path | bytes) -> bool:
    """Whether ONNX Runtime loads a model; False too where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is told by the exception
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = source if isinstance(source, bytes) else str(source)
    try:
        onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception:  # its errors share no base class
        return False
    return True


def check(proto: ModelProto) -> None:
    """Hold a model against ONNX's checker, which is not asked for a shape of inputs and outputs.

    Changes the model: it is to be a copy. Raises onnx.checker.ValidationError, RuntimeError.
    """
    if proto.graph.node and not proto.graph.name:
        proto.graph.name = "graph"  # it asks for a name; runtimes do not
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()  # the checker asks for a shape; runtimes and exporters do not
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    found = [node for node in _nodes(proto.graph) if is_unknown(node.op_type, node.domain, opset)]
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
