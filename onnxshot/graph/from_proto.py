"""Build a graph from its GraphProto. Weights are not loaded, and weights of subgraphs move to the outermost graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from onnxshot.errors import ModelError
from onnxshot.graph import sparse_tensors, weights
from onnxshot.graph.ir import Constant, EmptyList, Graph, Node, Tensor, Variable
from onnxshot.graph.own_file import OwnFile

_PLAIN = (  # attribute types that become Python values; all others are kept as AttributeProto
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRING,
    AttributeProto.STRINGS,
)


class _Fresh(Protocol):
    """Returns a name that no tensor or node has yet."""

    def __call__(self, base: str, suffix: str = "") -> str: ...


@dataclass(slots=True)
class Importer:
    """Builds graphs from protos.

    Attributes:
        folder: the folder of external data; None for a model given as an object.
        opset: opset of the model.
        fresh: returns new names.
        lifted: name -> weight that a skeleton has among its inputs; it becomes a constant again.
        graphs: all graphs that were built, inner before outer.
        own: the .onnx file itself, where large weights stay in it.
        external_data: whether a weight has external data, in a file beside the .onnx file.
    """

    folder: Path | None
    opset: int
    fresh: _Fresh
    lifted: Mapping[str, Constant]
    graphs: list[Graph] = field(default_factory=list)
    own: OwnFile | None = None
    external_data: bool = False

    def graph(self, proto: GraphProto, outer: Mapping[str, Tensor] | None = None) -> Graph:
        """Build the graph of a proto, with its subgraphs.

        Args:
            proto: the graph.
            outer: name -> tensor of the graphs around a subgraph; None for the top-level graph.

        Raises:
            ModelError: a tensor is computed twice or not at all, or a weight is invalid.
        """
        is_top, scope = outer is None, dict(outer or {})
        stored = self._weights(proto, scope, is_top=is_top)
        inputs: list[Tensor] = []
        overridable: dict[str, Constant] = {}
        for info in proto.input:
            if is_top and info.name in stored:
                overridable[info.name] = scope[info.name]
                continue
            # A skeleton has its large weights as inputs: turn them back into constants.
            if is_top and info.name in self.lifted:
                scope[info.name] = Constant(info.name, self.lifted[info.name]._values)
                continue
            scope[info.name] = Variable(info.name)
            inputs.append(scope[info.name])
        nodes = [self._node(n, scope) for n in in_order(proto)]
        outputs = []
        for info in proto.output:
            if info.name not in scope:
                raise ModelError(f"graph output {info.name!r} is computed by no node")
            out = scope[info.name]
            if not is_top and isinstance(out, Constant):
                # The weight moves to the outermost graph, but ONNX Runtime wants subgraphs to compute their outputs.
                out = Variable(self.fresh(info.name, "output"))
                nodes.append(Node("Identity", self.fresh(info.name, "Identity"), {}, [scope[info.name]], [out]))
            outputs.append(out)
        graph = Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=proto.name, opset=self.opset)
        graph.value_infos = {
            scope[v.name].name: v for v in (*proto.value_info, *proto.output, *proto.input) if v.name in scope
        }
        graph.input_order = {info.name: i for i, info in enumerate(proto.input)}
        graph.output_infos = list(proto.output)
        graph.overridable = overridable
        graph.doc_string = proto.doc_string
        graph.metadata_props = list(proto.metadata_props)
        graph.quantization_annotation = list(proto.quantization_annotation)
        names = {e.value for q in proto.quantization_annotation for e in q.quant_parameter_tensor_names}
        graph.annotation_params = [scope[n] for n in sorted(names) if isinstance(scope.get(n), Constant)]
        self.graphs.append(graph)
        return graph

    def _weights(self, proto: GraphProto, scope: dict[str, Tensor], *, is_top: bool) -> set[str]:
        """Add the graph's initializers to `scope`; return their names."""
        found: list[tuple[str, weights.StoredValues | NDArray[Any]]] = []
        for tensor in proto.initializer:
            lazy = weights.StoredValues(tensor, self.folder, self.own)
            found.append((tensor.name, lazy))
            self.external_data |= lazy.external
        found += [(s.values.name, sparse_tensors.dense(s, self.folder)) for s in proto.sparse_initializer]
        stored: set[str] = set()
        for name, values in found:
            if not name or name in stored:
                raise ModelError(f"initializer {name!r} is stored twice" if name else "an initializer has no name")
            stored.add(name)
            scope[name] = Constant(name if is_top else self.fresh(name), values)
        return stored

    def _node(self, proto: NodeProto, scope: dict[str, Tensor]) -> Node:
        attrs: dict[str, Any] = {}
        for attr in proto.attribute:
            if attr.type == AttributeProto.GRAPH and not attr.ref_attr_name:
                attrs[attr.name] = self.graph(attr.g, scope)
            elif attr.type in _PLAIN and not attr.ref_attr_name:
                attrs[attr.name] = _plain(attr)
            elif attr.type == AttributeProto.TENSOR and attr.t.data_location == TensorProto.EXTERNAL:
                attrs[attr.name] = self._inlined(attr)
            else:
                attrs[attr.name] = attr
        where = f"node {(proto.name or proto.op_type)!r}"
        inputs = []
        for name in proto.input:
            if name and name not in scope:
                raise ModelError(
                    f"{where} ({proto.op_type}) reads {name!r}, which no earlier node computes",
                    "the nodes are not in order, form a cycle, or a weight is missing",
                )
            inputs.append(scope[name] if name else Variable(""))
        outputs = []
        for name in proto.output:
            if name and name in scope:
                raise ModelError(f"{where} ({proto.op_type}) computes {name!r}, which exists already")
            tensor = Variable(name)
            outputs.append(tensor)
            if name:
                scope[name] = tensor
        node = Node(proto.op_type, proto.name, attrs, inputs, outputs, proto.domain or None)
        if proto.doc_string or proto.overload or proto.metadata_props or getattr(proto, "device_configurations", None):
            node.extra = _extra(proto)
        return node

    def _inlined(self, attr: AttributeProto) -> AttributeProto:
        """A tensor attribute with its external data read in; a model written elsewhere would not find the file."""
        values = weights.StoredValues(attr.t, self.folder)
        inlined = AttributeProto(name=attr.name, type=attr.type, doc_string=attr.doc_string)
        inlined.t.CopyFrom(weights.to_proto(Constant(attr.t.name, values)))
        return inlined


def _extra(proto: NodeProto) -> NodeProto:
    extra = NodeProto(doc_string=proto.doc_string or None, overload=proto.overload or None)
    extra.metadata_props.extend(proto.metadata_props)
    if hasattr(proto, "device_configurations"):
        extra.device_configurations.extend(proto.device_configurations)
    return extra


def in_order(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes in topological order; unchanged where they are in order already, or have a cycle.

    The specification requires this order, but ONNX Runtime accepts any.
    """
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [sorted({maker[name] for name in _reads(node) if name in maker}) for node in nodes]
    if all(not needed or needed[-1] < i for i, needed in enumerate(needs)):
        return nodes
    order: dict[int, None] = {}
    for start in range(len(nodes)):
        stack, waiting = [start], set[int]()
        while stack:
            at = stack[-1]
            missing = [i for i in needs[at] if i not in order]
            if at in order or not missing:
                order[stack.pop()] = None
            elif at in waiting:
                return nodes  # a cycle: building the graph raises an error that names a node
            else:
                waiting.add(at)
                stack += missing
    return [nodes[i] for i in order]


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node or its subgraphs read, and names of the subgraphs' outputs."""
    stack = [node]
    while stack:
        inner = stack.pop()
        yield from inner.input
        for attribute in inner.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                yield from (info.name for info in graph.output)
                stack.extend(graph.node)


def own_names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of all nodes and tensors, except weights of subgraphs, which may be renamed."""
    stack = [graph]
    yield from (t.name for t in graph.initializer)
    yield from (t.values.name for t in graph.sparse_initializer)
    while stack:
        inner = stack.pop()
        yield from (info.name for info in inner.input)
        for node in inner.node:
            yield node.name
            yield from node.output
            stack.extend(a.g for a in node.attribute if a.type == AttributeProto.GRAPH)


def _plain(attr: AttributeProto) -> Any:
    """The Python value of an attribute whose type is in _PLAIN."""
    value = helper.get_attribute_value(attr)
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        return value
    if value:
        return list(value)
    empty = EmptyList()
    empty.kind = attr.type
    return empty
