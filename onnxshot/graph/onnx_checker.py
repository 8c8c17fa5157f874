"""ONNX's checker, with exceptions for models that it refuses although the specification or runtimes allow them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

_UNCHECKED = "onnxshot.unchecked"  # a domain that the checker does not know, and so does not check
_NEWEST = 1 << 30
_REFUSED = {  # operator of the default domain -> the opsets in which the checker refuses it, although runtimes run it
    "GroupNormalization": (18, 20),  # deprecated without a successor until opset 21; exporters write it
    # ONNX Runtime has these in the default domain in every opset, and its optimizer writes them there.
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
    """Return whether ONNX's tools refuse an operator in this opset although runtimes run it."""
    first, last = _REFUSED.get(op, (1, 0))
    return domain in (None, "", "ai.onnx") and first <= opset <= last


def missing_imports(proto: ModelProto) -> dict[str, int]:
    """Return the domains that a model uses but does not import, with the version that ONNX Runtime assumes.

    Only domains that ONNX Runtime knows are returned; domains of local functions are not.
    """
    known = {entry.domain for entry in proto.opset_import} | {function.domain for function in proto.functions}
    used = {node.domain for node in _nodes(proto.graph)} - known
    return {domain: version for domain, version in _IMPLIED.items() if domain in used}


def loads(source: Path | bytes) -> bool:
    """Return whether ONNX Runtime loads a model; False also where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: the exception reports a failure
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = source if isinstance(source, bytes) else str(source)
    try:
        onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's errors share no base class
        return False
    return True


def check(proto: ModelProto) -> None:
    """Run ONNX's checker on a model, without its demands for a graph name and for shapes of inputs and outputs.

    Args:
        proto: a copy of the model; it is changed.

    Raises:
        onnx.checker.ValidationError, RuntimeError: the model is invalid.
    """
    if proto.graph.node and not proto.graph.name:
        proto.graph.name = "graph"  # the checker requires a name; runtimes do not
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()  # the checker requires a shape; runtimes do not
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
