"""Multiply-accumulates of every node that multiplies: how much of a network's work a decision touches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, TypeProto

from onnxshot.graph.ir import Node
from onnxshot.graph.model import Model
from onnxshot.graph.shapes import infer_proto
from onnxshot.graph.work import Shape, Shapes, Work, rules_of

__all__ = ["NodeMacs", "Shape", "Shapes", "concrete_shapes", "count", "macs", "work_of"]


@dataclass(frozen=True, slots=True)
class NodeMacs:
    """Work of one node in one run.

    exact: False where a shape was missing and one output position was counted; in_float: the part of `macs` that is
    done in float whatever the precision of the rest, as the attention inside an operator with quantized weights.
    """

    node: Node
    macs: int
    exact: bool
    in_float: int = 0


def macs(model: Model, feed_shapes: Shapes | None = None) -> dict[str, int]:
    """Multiply-accumulates of one run per node label, for the nodes that multiply matrices; nodes of branches once.

    feed_shapes: shapes of the graph inputs; free dimensions that it leaves open count as 1.
    """
    found: dict[str, int] = {}
    for row in count(model, concrete_shapes(model, feed_shapes)):
        found[row.node.label] = found.get(row.node.label, 0) + row.macs
    return found


def count(model: Model, shapes: Shapes) -> list[NodeMacs]:
    """One row per node that multiplies matrices, given the shapes of tensors by name; subgraphs included."""
    rows = (work_of(node, shapes) for _, node in model.walk())
    return [row for row in rows if row is not None]


def work_of(node: Node, shapes: Shapes) -> NodeMacs | None:
    """The work of one node, given the shapes of its tensors by name; None where it multiplies no matrices."""
    rule, inner = rules_of(node)
    if rule is None:
        return None
    work = Work(node, shapes)
    result, aside = rule(work), inner(work) if inner is not None else 0
    if result is None or aside is None:
        return NodeMacs(node, work.smallest(), False)
    return NodeMacs(node, result + aside, True, aside)


# ---------------------------------------------------------------------- shapes


def concrete_shapes(model: Model, feed_shapes: Shapes | None = None) -> dict[str, Shape]:
    """Shapes of the model's tensors as they are when inputs of these shapes are fed; what cannot be told is left out.

    Shapes that the file states serve where ONNX's inference stops, at custom operators for one.
    """
    proto, lifted = model.skeleton()
    symbols = _symbols(proto.graph, feed_shapes or {}, lifted)
    stated = [*proto.graph.value_info, *proto.graph.output]
    for info in proto.graph.input:
        if info.name not in lifted and info.type.HasField("tensor_type"):
            _pin(info.type.tensor_type, (feed_shapes or {}).get(info.name), symbols)
    # Inference starts from the inputs alone: an exporter's hints hold its example's sizes, not these.
    hints = {info.name: _resolved(info.type.tensor_type, symbols) for info in stated}
    del proto.graph.value_info[:]
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    found: dict[str, Shape] = {}
    try:
        inferred = infer_proto(proto)
        _collect(inferred.graph, found)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        _collect(proto.graph, found)  # no inference: what the file states must do
    for name, shape in hints.items():
        if shape is not None:
            found.setdefault(name, shape)
    return found


def _symbols(graph: GraphProto, feed_shapes: Shapes, lifted: Iterable[str]) -> dict[str, int]:
    """Values of the named dimensions, from the inputs that are fed; 1 for those of inputs that are not."""
    symbols: dict[str, int] = {}
    for info in graph.input:
        shape = feed_shapes.get(info.name)
        dims = info.type.tensor_type.shape.dim
        if shape is not None and len(shape) == len(dims):
            symbols |= {d.dim_param: size for d, size in zip(dims, shape, strict=True) if d.dim_param}
    for info in graph.input:
        if info.name not in lifted:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param:
                    symbols.setdefault(dim.dim_param, 1)
    return symbols


def _pin(tensor: TypeProto.Tensor, shape: Shape | None, symbols: Mapping[str, int]) -> None:
    """Give an input the fed shape, or 1 for each dimension nothing is known of."""
    if shape is None and not tensor.HasField("shape"):
        return
    if shape is None:
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, 1) for d in tensor.shape.dim
        )
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for size in shape:
        tensor.shape.dim.add(dim_value=size)


def _resolved(tensor: TypeProto.Tensor, symbols: Mapping[str, int]) -> Shape | None:
    """The stated shape with symbols replaced; None where the shape or a dimension is not known."""
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, -1) for d in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else tuple(sizes)


def _collect(graph: GraphProto, found: dict[str, Shape]) -> None:
    for info in (*graph.input, *graph.value_info, *graph.output):
        shape = _resolved(info.type.tensor_type, {})
        if shape is not None:
            found.setdefault(info.name, shape)
    for tensor in graph.initializer:
        found.setdefault(tensor.name, tuple(tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, found)
