"""Model: a graphsurgeon graph plus what graphsurgeon forgets (metadata, docs, opsets, the input/output contract).

graphsurgeon's importer drops attributes it does not know, doc strings and metadata, and its exporter rebuilds the types
of inputs and outputs. So the graph is read and written here, and graphsurgeon serves for what it is good at: nodes and
tensors that know their producers and consumers, through subgraphs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshot.errors import ModelError
from onnxshot.graph import weights
from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable

_PLAIN = (  # attribute kinds held as Python values; all others are carried through as they are
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRING,
    AttributeProto.STRINGS,
)
Store = Callable[[Constant], TensorProto | None]

_KEEP_INLINE = 4096  # bytes up to which a weight stays in a skeleton: shapes, axes, small scales


class _EmptyList(list[Any]):
    """An empty list attribute: without elements, only the file knows what kind of list it is."""

    kind: int = AttributeProto.INTS


class Model:
    """An ONNX model that can be edited. The one mutable thing in onnxshot.

    Attributes:
        graph: the top-level graph; its nodes are always in topological order when a pass starts.
        path: where it was read from, if it was.
        external_data: True where the file it came from keeps weights in other files.
        notes: what was done to it on the way that a user should know, for the report.
        known_graphs: every graph it was made of; ones that an edit took out are still listed. `graphs` walks the rest.
    """

    def __init__(self, proto: ModelProto, folder: Path | None = None, path: Path | None = None) -> None:
        self.path = path
        self.external_data = False
        self.notes: list[str] = []
        self._folder = folder
        self._constants: Mapping[str, Constant] = {}
        self._adopt(proto)

    def _adopt(self, proto: ModelProto) -> None:
        """Take over a ModelProto: everything but its graph goes to the envelope."""
        self.envelope = ModelProto()
        for field, value in proto.ListFields():
            if field.name == "graph":
                continue
            if field.is_repeated:
                getattr(self.envelope, field.name).MergeFrom(value)
            elif field.message_type:
                getattr(self.envelope, field.name).CopyFrom(value)
            else:
                setattr(self.envelope, field.name, value)
        # All names first: a weight lifted out of a branch must not take that of a tensor that is yet to come.
        self._names = set(_own_names(proto.graph))
        self._counts: dict[str, int] = {}
        self.known_graphs: list[Graph] = []
        self.graph = self._import_graph(proto.graph, {}, is_top=True)

    # ------------------------------------------------------------------ facts

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        for entry in self.envelope.opset_import:
            if entry.domain in ("", "ai.onnx"):
                return int(entry.version)
        return 1

    def require_domain(self, domain: str, version: int = 1) -> None:
        """Declare an operator domain that a new node uses."""
        if all(entry.domain != domain for entry in self.envelope.opset_import):
            self.envelope.opset_import.append(helper.make_opsetid(domain, version))

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props, as a copy."""
        return {p.key: p.value for p in self.envelope.metadata_props}

    def set_metadata(self, key: str, value: str) -> None:
        """Add or replace one metadata entry."""
        for entry in self.envelope.metadata_props:
            if entry.key == key:
                entry.value = value
                return
        self.envelope.metadata_props.add(key=key, value=value)

    def graphs(self) -> Iterator[Graph]:
        """Yield the top-level graph, then every subgraph, outer before inner."""
        stack = [self.graph]
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph.nodes:
                if node.attrs:
                    stack.extend(v for v in node.attrs.values() if isinstance(v, Graph))

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Yield every node with the graph it stands in, subgraphs included."""
        for graph in self.graphs():
            for node in graph.nodes:
                yield graph, node

    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor of the top-level graph, including those only subgraphs use."""
        found: dict[str, Tensor] = {}
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            found.setdefault(tensor.name, tensor)
        for _, node in self.walk():
            for tensor in (*node.inputs, *node.outputs):
                if tensor.name:
                    found.setdefault(tensor.name, tensor)
        return found

    def weight_bytes(self) -> int:
        """Bytes of all constants, in subgraphs too."""
        return sum(weights.size_bytes(t) for t in self.constants())

    def constants(self) -> list[Constant]:
        """Every constant in use, once: by nodes in their order, as outputs, or as parameters of annotations."""
        found: dict[int, Constant] = {}
        for _, node in self.walk():
            for tensor in node.inputs:
                if isinstance(tensor, Constant):
                    found.setdefault(id(tensor), tensor)
        for graph in self.graphs():
            for tensor in (*graph.outputs, *graph.annotation_params):
                if isinstance(tensor, Constant):
                    found.setdefault(id(tensor), tensor)
        return list(found.values())

    def value_info(self, name: str) -> ValueInfoProto | None:
        """Type and shape of a tensor of the top-level graph, as far as the file or shape inference told."""
        info = self.graph.value_infos.get(name)
        return info if isinstance(info, ValueInfoProto) else None

    def shape(self, tensor: Tensor) -> tuple[int | str | None, ...] | None:
        """Shape of a tensor: symbolic dimensions as str, unknown ones (-1 too) as None; None where no rank is known."""
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        info = self.value_info(tensor.name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
            for d in info.type.tensor_type.shape.dim
        )

    def elem_type(self, tensor: Tensor) -> int:
        """ONNX element type of a tensor; 0 where it is not known."""
        if isinstance(tensor, Constant):
            return weights.elem_type(tensor)
        info = self.value_info(tensor.name)
        return 0 if info is None else int(info.type.tensor_type.elem_type)

    # ------------------------------------------------------------------ names

    def fresh(self, base: str, suffix: str = "") -> str:
        """Return a name that no tensor or node of the model, in any subgraph, has yet. All new names come from here."""
        stem = "_".join(part for part in (base, suffix) if part) or "tensor"
        name, count = stem, self._counts.get(stem, 1)
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._names.add(name)
        return name

    # ------------------------------------------------------------------ import

    def _import_graph(self, proto: GraphProto, outer: dict[str, Tensor], *, is_top: bool) -> Graph:
        scope = dict(outer)
        stored = self._import_weights(proto, scope, is_top=is_top)
        inputs: list[Tensor] = []
        overridable: dict[str, Constant] = {}
        for info in proto.input:
            if is_top and info.name in stored:
                overridable[info.name] = scope[info.name]
                continue
            # A weight lifted out of a skeleton comes back as an input: give it its values again.
            if is_top and info.name in self._constants:
                scope[info.name] = Constant(info.name, self._constants[info.name]._values)
                continue
            scope[info.name] = Variable(info.name)
            inputs.append(scope[info.name])
        nodes = [self._import_node(n, scope) for n in proto.node]
        outputs = []
        for info in proto.output:
            if info.name not in scope:
                raise ModelError(f"graph output {info.name!r} is made by no node")
            out = scope[info.name]
            if not is_top and isinstance(out, Constant):
                # The weight moves to the outermost graph, and ORT wants the outputs of a branch made inside it.
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
        self.known_graphs.append(graph)
        return graph

    def _import_weights(self, proto: GraphProto, scope: dict[str, Tensor], *, is_top: bool) -> set[str]:
        """Put the graph's initializers into `scope`; their names."""
        found: list[tuple[str, weights.StoredValues | NDArray[Any]]] = []
        for tensor in proto.initializer:
            found.append((tensor.name, weights.StoredValues(tensor, self._folder)))
            self.external_data |= tensor.data_location == TensorProto.EXTERNAL
        found += [(sparse.values.name, weights.dense(sparse, self._folder)) for sparse in proto.sparse_initializer]
        stored: set[str] = set()
        for name, values in found:
            if not name or name in stored:
                raise ModelError(f"initializer {name!r} is stored twice" if name else "an initializer has no name")
            stored.add(name)
            scope[name] = Constant(name if is_top else self.fresh(name), values)
        return stored

    def _import_node(self, proto: NodeProto, scope: dict[str, Tensor]) -> Node:
        attrs: dict[str, Any] = {}
        for attr in proto.attribute:
            if attr.type == AttributeProto.GRAPH and not attr.ref_attr_name:
                attrs[attr.name] = self._import_graph(attr.g, scope, is_top=False)
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
                    f"{where} ({proto.op_type}) reads {name!r}, which nothing before it makes",
                    "the nodes are not in order, form a cycle, or a weight is missing",
                )
            inputs.append(scope[name] if name else Variable(""))
        outputs = []
        for name in proto.output:
            if name and name in scope:
                raise ModelError(f"{where} ({proto.op_type}) makes {name!r}, which exists already")
            tensor = Variable(name)
            outputs.append(tensor)
            if name:
                scope[name] = tensor
        node = Node(proto.op_type, proto.name, attrs, inputs, outputs, proto.domain or None)
        extra = NodeProto(doc_string=proto.doc_string or None, overload=proto.overload or None)
        extra.metadata_props.extend(proto.metadata_props)
        if hasattr(proto, "device_configurations"):
            extra.device_configurations.extend(proto.device_configurations)
        node.extra = extra
        return node

    def _inlined(self, attr: AttributeProto) -> AttributeProto:
        """A tensor attribute with its external values inside: its file is found from the model's own folder only."""
        values = weights.StoredValues(attr.t, self._folder)
        inlined = AttributeProto(name=attr.name, type=attr.type, doc_string=attr.doc_string)
        inlined.t.CopyFrom(weights.to_proto(Constant(attr.t.name, values)))
        return inlined

    # ------------------------------------------------------------------ export

    def to_proto(self) -> ModelProto:
        """The whole model as one ModelProto, weights inside. Raises ModelError where it would pass protobuf's 2 GiB."""
        if self.weight_bytes() > (1 << 31) - (1 << 24):
            raise ModelError("the model is over 2 GiB and does not fit one ModelProto", "save it to a path instead")
        return self.export(weights.to_proto)

    def skeleton(self) -> tuple[ModelProto, dict[str, Constant]]:
        """The model without its large weights, and those weights by name.

        Large weights stand among the graph's inputs. Shape inference, the checker and the version converter need no
        more than this, and copy what they are given several times over.
        """
        lifted: dict[str, Constant] = {}

        def store(constant: Constant) -> TensorProto | None:
            if weights.size_bytes(constant) <= _KEEP_INLINE:
                return weights.to_proto(constant)
            lifted[constant.name] = constant
            return None

        proto = self.export(store)
        listed = {info.name for info in proto.graph.input}
        for name, constant in lifted.items():
            if name in listed:
                continue
            info = helper.make_tensor_value_info(name, weights.elem_type(constant), constant.shape)
            proto.graph.input.append(info)
        return proto, lifted

    def rebuild(self, proto: ModelProto, lifted: Mapping[str, Constant]) -> None:
        """Take the graph of a skeleton that another tool rewrote, and give the lifted weights back to it."""
        keep, overridable = self.envelope, self.graph.overridable
        self._constants = lifted
        self._adopt(proto)
        self._constants = {}
        kept = {t.name: t for t in self.constants() if t.name in overridable}
        self.graph.overridable = {name: kept[name] for name in overridable if name in kept}
        # Tools that go through ONNX's C++ graph forget metadata, docs and producers; the model's own are kept.
        rewritten = self.envelope
        self.envelope = keep
        del self.envelope.opset_import[:]
        self.envelope.opset_import.extend(rewritten.opset_import)
        del self.envelope.functions[:]
        self.envelope.functions.extend(rewritten.functions)
        self.envelope.ir_version = max(keep.ir_version, rewritten.ir_version)

    def export(self, store: Store) -> ModelProto:
        """Build the ModelProto; `store` turns each weight into its TensorProto, or into None to leave it out."""
        proto = ModelProto()
        proto.CopyFrom(self.envelope)
        held = {id(c): c for c in self.constants()}
        self._export_graph(proto.graph, self.graph, held, store)
        # Every weight is stored in the outermost graph: one shared by two branches is stored once.
        for constant in held.values():
            tensor_proto = store(constant)
            if tensor_proto is not None:
                proto.graph.initializer.append(tensor_proto)
        if proto.ir_version < 4 and any(c.name not in self.graph.overridable for c in held.values()):
            proto.ir_version = 4  # below 4 every initializer must be an input as well
        return proto

    def _export_graph(self, proto: GraphProto, graph: Graph, held: dict[int, Constant], store: Store) -> None:
        """Fill in `proto`; its weights are the outermost graph's."""
        proto.name = graph.name or ""
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        proto.metadata_props.extend(graph.metadata_props)
        for node in graph.nodes:
            self._export_node(proto.node.add(), node, held, store)
        inputs = [_named(graph.value_infos[t.name], t.name) for t in graph.inputs]
        inputs += [graph.value_infos[name] for name, c in graph.overridable.items() if id(c) in held]
        last = len(graph.input_order)
        proto.input.extend(sorted(inputs, key=lambda info: graph.input_order.get(info.name, last)))
        proto.output.extend(
            _named(info, t.name) for t, info in zip(graph.outputs, graph.output_infos, strict=True)
        )
        taken = {v.name for v in (*proto.input, *proto.output)}
        alive = {t.name for n in graph.nodes for t in n.outputs if t.name}
        proto.value_info.extend(_named(v, k) for k, v in graph.value_infos.items() if k in alive and k not in taken)
        known = alive | taken | {c.name for c in held.values()}
        proto.quantization_annotation.extend(q for q in graph.quantization_annotation if q.tensor_name in known)

    def _export_node(self, proto: NodeProto, node: Node, held: dict[int, Constant], store: Store) -> None:
        proto.op_type = node.op
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        proto.MergeFrom(getattr(node, "extra", NodeProto()))
        proto.input.extend(t.name for t in node.inputs)
        proto.output.extend(t.name for t in node.outputs)
        for key, value in node.attrs.items():
            if isinstance(value, AttributeProto):
                proto.attribute.append(value)
            elif isinstance(value, Graph):
                attr = proto.attribute.add(name=key, type=AttributeProto.GRAPH)
                self._export_graph(attr.g, value, held, store)
            elif isinstance(value, list) and not value:
                kind = getattr(value, "kind", _EmptyList.kind)
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


def _own_names(graph: GraphProto) -> Iterator[str]:
    """Names of nodes and tensors, subgraphs included; but for weights of subgraphs, which may be renamed."""
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
    """The value of an attribute of a _PLAIN kind; lists as list."""
    value = helper.get_attribute_value(attr)
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        return value
    if value:
        return list(value)
    empty = _EmptyList()
    empty.kind = attr.type
    return empty
