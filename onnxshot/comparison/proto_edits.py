"""Helpers for serialized graphs that are edited for a comparison and never written to disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.lean_parse import parse_lean
from onnxshot.graph.load import first_line
from onnxshot.runtimes.ort_runtime import label_of

PREFIX = "onnxshot.judged/"
"""Prefix of names of tensors that exist only for a comparison."""
STANDARD = ("", "ai.onnx")


def parsed(source: Path | bytes | ModelProto | LeanModel) -> ModelProto:
    """A copy that may be edited, with the values of small weights at least. Raises ModelError if it cannot be read."""
    try:
        if isinstance(source, LeanModel):
            return source.outline()
        if isinstance(source, ModelProto):
            copy = ModelProto()
            copy.CopyFrom(source)
            return copy
        if isinstance(source, bytes):
            return onnx.load_from_string(source)
        return parse_lean(source)
    except (OSError, DecodeError, ValueError) as e:
        where = label_of(source) if isinstance(source, Path) else "the model in memory"
        raise ModelError(f"{where} cannot be read: {first_line(e)}") from e


def opset_of(proto: ModelProto) -> int:
    """Version of the standard operator set."""
    return max((o.version for o in proto.opset_import if o.domain in STANDARD), default=1)


def require_domain(proto: ModelProto, domain: str) -> None:
    """Import an operator domain if the model does not import it yet."""
    if all(o.domain != domain for o in proto.opset_import):
        proto.opset_import.add(domain=domain, version=1)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all its subgraphs, outermost first."""
    yield graph
    for node in graph.node:
        for inner in bodies(node):
            yield from graphs(inner)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs of a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """Names that a node and its subgraphs read. Some may be defined inside the subgraphs."""
    inner = (name for body in bodies(node) for n in body.node for name in reads(n))
    results = (o.name for body in bodies(node) for o in body.output)
    return [name for name in (*node.input, *inner, *results) if name]


def makers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor of a graph, subgraphs excluded."""
    return {name: node for node in graph.node for name in node.output if name}


def replace_nodes(graph: GraphProto, instead: Mapping[int, Iterable[NodeProto]]) -> None:
    """Replace some nodes, given by index, by other nodes."""
    nodes = list(graph.node)
    made = [new for i, node in enumerate(nodes) for new in instead.get(i, (node,))]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in made]
    del graph.node[:]
    graph.node.extend(kept)


def attribute(node: NodeProto, name: str, default: float) -> float:
    """A numeric attribute of a node."""
    for a in node.attribute:
        if a.name == name:
            return float(a.f if a.type == AttributeProto.FLOAT else a.i)
    return default


def named(node: NodeProto) -> str:
    """How messages name a node."""
    return node.name or f"{node.op_type} that makes {next(iter(node.output), '')}"
