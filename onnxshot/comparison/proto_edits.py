"""Small things on serialized graphs that are changed for a comparison and never written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnxshot.errors import ModelError
from onnxshot.graph.load import first_line
from onnxshot.runtimes.ort_runtime import label

PREFIX = "onnxshot.judged/"
"""What names of tensors that are only there for a comparison begin with."""
STANDARD = ("", "ai.onnx")


def parsed(source: Path | bytes | ModelProto) -> ModelProto:
    """A copy that may be changed; external data stays where it is. Raises ModelError."""
    try:
        if isinstance(source, ModelProto):
            copy = ModelProto()
            copy.CopyFrom(source)
            return copy
        if isinstance(source, bytes):
            return onnx.load_from_string(source)
        return onnx.load(str(source), format="protobuf", load_external_data=False)
    except (OSError, DecodeError, ValueError) as e:
        where = "the model in memory" if isinstance(source, ModelProto) else label(source)
        raise ModelError(f"{where} cannot be read: {first_line(e)}") from e


def opset_of(proto: ModelProto) -> int:
    """Version of the standard operators."""
    return max((o.version for o in proto.opset_import if o.domain in STANDARD), default=1)


def require_domain(proto: ModelProto, domain: str) -> None:
    """Import a domain of operators."""
    if all(o.domain != domain for o in proto.opset_import):
        proto.opset_import.add(domain=domain, version=1)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes, outermost first."""
    yield graph
    for node in graph.node:
        for inner in bodies(node):
            yield from graphs(inner)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """Names a node reads, in its subgraphs too; some of them may be the subgraphs' own."""
    inner = (name for body in bodies(node) for n in body.node for name in reads(n))
    results = (o.name for body in bodies(node) for o in body.output)
    return [name for name in (*node.input, *inner, *results) if name]


def makers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor of a graph, its subgraphs left out."""
    return {name: node for node in graph.node for name in node.output if name}


def replace_nodes(graph: GraphProto, instead: Mapping[int, Iterable[NodeProto]]) -> None:
    """Put other nodes in the places of some, which are given by number."""
    nodes = list(graph.node)
    made = [new for i, node in enumerate(nodes) for new in instead.get(i, (node,))]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in made]
    del graph.node[:]
    graph.node.extend(kept)


def attribute(node: NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    for a in node.attribute:
        if a.name == name:
            return float(a.f if a.type == AttributeProto.FLOAT else a.i)
    return default


def named(node: NodeProto) -> str:
    """What messages call a node."""
    return node.name or f"{node.op_type} that makes {next(iter(node.output), '')}"
