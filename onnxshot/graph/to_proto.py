"""Write a graph into its GraphProto. What no pass has edited is written as it was read."""

from __future__ import annotations

from collections.abc import Callable

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshot.graph.ir import Constant, EmptyList, Graph, Node

Store = Callable[[Constant], TensorProto | None]
"""Turns a constant into its TensorProto, or into None to leave it out."""


def export_graph(proto: GraphProto, graph: Graph, held: dict[int, Constant]) -> None:
    """Write a graph into `proto`, without its weights, which `Model.export` adds to the outermost graph.

    Args:
        proto: an empty GraphProto.
        graph: the graph.
        held: the constants in use, by `id`.
    """
    proto.name = graph.name or ""
    if graph.doc_string:
        proto.doc_string = graph.doc_string
    proto.metadata_props.extend(graph.metadata_props)
    for node in graph.nodes:
        _export_node(proto.node.add(), node, held)
    inputs = [_named(graph.value_infos[t.name], t.name) for t in graph.inputs]
    inputs += [graph.value_infos[name] for name, c in graph.overridable.items() if id(c) in held]
    last = len(graph.input_order)
    proto.input.extend(sorted(inputs, key=lambda info: graph.input_order.get(info.name, last)))
    proto.output.extend(_named(info, t.name) for t, info in zip(graph.outputs, graph.output_infos, strict=True))
    taken = {v.name for v in (*proto.input, *proto.output)}
    alive = {t.name for n in graph.nodes for t in n.outputs if t.name}
    proto.value_info.extend(_named(v, k) for k, v in graph.value_infos.items() if k in alive and k not in taken)
    known = alive | taken | {c.name for c in held.values()}
    proto.quantization_annotation.extend(q for q in graph.quantization_annotation if q.tensor_name in known)


def _export_node(proto: NodeProto, node: Node, held: dict[int, Constant]) -> None:
    proto.op_type = node.op
    if node.name:
        proto.name = node.name
    if node.domain:
        proto.domain = node.domain
    if node.extra is not Node.extra:
        proto.MergeFrom(node.extra)
    proto.input.extend(t.name for t in node.inputs)
    proto.output.extend(t.name for t in node.outputs)
    for key, value in node.attrs.items():
        if isinstance(value, AttributeProto):
            proto.attribute.append(value)
        elif isinstance(value, Graph):
            attr = proto.attribute.add(name=key, type=AttributeProto.GRAPH)
            export_graph(attr.g, value, held)
        elif isinstance(value, list) and not value:
            kind = getattr(value, "kind", EmptyList.kind)
            proto.attribute.append(helper.make_attribute(key, value, attr_type=kind))
        else:
            proto.attribute.append(helper.make_attribute(key, value))


def _named(info: ValueInfoProto, name: str) -> ValueInfoProto:
    if info.name == name:
        return info
    renamed = ValueInfoProto()
    renamed.CopyFrom(info)
    renamed.name = name
    return renamed
