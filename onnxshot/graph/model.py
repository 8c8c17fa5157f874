"""Model: a graphsurgeon graph plus what graphsurgeon forgets (metadata, docs, opsets, the input/output contract).

graphsurgeon's importer drops attributes it does not know, doc strings and metadata, and its exporter rebuilds the types
of inputs and outputs. So the graph is read and written here, and graphsurgeon serves for what it is good at: nodes and
tensors that know their producers and consumers, through subgraphs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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


class Model:
    """An ONNX model that can be edited. The one mutable thing in onnxshot.

    Attributes:
        graph: the top-level graph; its nodes are always in topological order when a pass starts.
        path: where it was read from, if it was.
        notes: what was done to it on the way that a user should know, for the report.
    """

    def __init__(self, proto: ModelProto, folder: Path | None = None, path: Path | None = None) -> None:
        self.path = path
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
        self._names: set[str] = set()
        self._lifted_names: set[str] = set()
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
        """Every constant in use, once, in the order of use."""
        found: dict[int, Constant] = {}
        for _, node in self.walk():
            for tensor in node.inputs:
                if isinstance(tensor, Constant):
                    found.setdefault(id(tensor), tensor)
        for graph in self.graphs():
            for tensor in graph.outputs:
                if isinstance(tensor, Constant):
                    found.setdefault(id(tensor), tensor)
        return list(found.values())

    def value_info(self, name: str) -> ValueInfoProto | None:
        """Type and shape of a tensor of the top-level graph, as far as the file or shape inference told."""
        info = self.graph.value_infos.get(name)
        return info if isinstance(info, ValueInfoProto) else None

    def shape(self, tensor: Tensor) -> tuple[int | str | None, ...] | None:
        """Shape of a tensor; symbolic dimensions as str, unknown ones as None, unknown rank as None."""
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        info = self.value_info(tensor.name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in info.type.tensor_type.shape.dim
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
        stem = f"{base}_{suffix}" if suffix else base
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    # ------------------------------------------------------------------ import

    def _import_graph(self, proto: GraphProto, outer: dict[str, Tensor], *, is_top: bool) -> Graph:
        scope = dict(outer)
        for init in proto.initializer:
            scope[init.name] = self._import_constant(init.name, weights.StoredValues(init, self._folder), is_top)
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            scope[name] = self._import_constant(name, _dense(sparse), is_top)
        stored = {i.name for i in proto.initializer} | {s.values.name for s in proto.sparse_initializer}
        inputs: list[Tensor] = []
        overridable: dict[str, Constant] = {}
        for info in proto.input:
            if info.name in stored:
                overridable[info.name] = scope[info.name]
                continue
            # A weight lifted out of a skeleton comes back as an input: give it its values again.
            if is_top and info.name in self._constants:
                scope[info.name] = self._constants[info.name]
                self._names.add(info.name)
                continue
            scope[info.name] = self._variable(info.name)
            inputs.append(scope[info.name])
        nodes = [self._import_node(n, scope) for n in proto.node]
        outputs = []
        for info in proto.output:
            if info.name not in scope:
                raise ModelError(f"graph output {info.name!r} is made by no node")
            outputs.append(scope[info.name])
        graph = Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=proto.name, opset=self.opset)
        graph.value_infos = {
            scope[v.name].name: v for v in (*proto.value_info, *proto.output, *proto.input) if v.name in scope
        }
        graph.output_infos = list(proto.output)
        graph.overridable = overridable
        graph.doc_string = proto.doc_string
        graph.metadata_props = list(proto.metadata_props)
        graph.quantization_annotation = list(proto.quantization_annotation)
        return graph

    def _variable(self, name: str) -> Variable:
        # Weights of a branch move to the outermost graph: a sibling branch may use the same name for a tensor.
        unique = self.fresh(name) if name in self._lifted_names else name
        self._names.add(unique)
        return Variable(unique)

    def _import_constant(self, name: str, values: Any, is_top: bool) -> Constant:
        unique = name
        if not is_top:
            unique = self.fresh(name)
            self._lifted_names.add(unique)
        self._names.add(unique)
        return Constant(unique, values)

    def _import_node(self, proto: NodeProto, scope: dict[str, Tensor]) -> Node:
        attrs: dict[str, Any] = {}
        for attr in proto.attribute:
            if attr.type == AttributeProto.GRAPH and not attr.ref_attr_name:
                attrs[attr.name] = self._import_graph(attr.g, scope, is_top=False)
            elif attr.type in _PLAIN and not attr.ref_attr_name:
                value = helper.get_attribute_value(attr)
                attrs[attr.name] = list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else value
            else:
                attrs[attr.name] = attr
        where = f"node {proto.name or proto.op_type!r}"
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
            tensor = self._variable(name) if name else Variable("")
            outputs.append(tensor)
            if name:
                scope[name] = tensor
        if proto.name:
            self._names.add(proto.name)
        node = Node(proto.op_type, proto.name, attrs, inputs, outputs, proto.domain or None)
        extra = NodeProto(doc_string=proto.doc_string, overload=proto.overload)
        extra.metadata_props.extend(proto.metadata_props)
        if hasattr(proto, "device_configurations"):
            extra.device_configurations.extend(proto.device_configurations)
        node.extra = extra
        return node

    # ------------------------------------------------------------------ export

    def to_proto(self) -> ModelProto:
        """The whole model as one ModelProto, weights inside. Raises ModelError where protobuf's 2 GiB would be passed."""
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
        for name, constant in lifted.items():
            info = helper.make_tensor_value_info(name, weights.elem_type(constant), constant.shape)
            proto.graph.input.append(info)
        return proto, lifted

    def rebuild(self, proto: ModelProto, lifted: Mapping[str, Constant]) -> None:
        """Take the graph of a skeleton that another tool rewrote, and give the lifted weights back to it."""
        keep = self.envelope
        self._constants = lifted
        self._adopt(proto)
        self._constants = {}
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
        proto.graph.CopyFrom(self._export_graph(self.graph, held, store, is_top=True))
        return proto

    def _export_graph(self, graph: Graph, held: dict[int, Constant], store: Store, *, is_top: bool) -> GraphProto:
        proto = GraphProto(name=graph.name or "", doc_string=graph.doc_string)
        proto.metadata_props.extend(graph.metadata_props)
        for node in graph.nodes:
            proto.node.append(self._export_node(node, held, store))
        proto.input.extend(_named(graph.value_infos[t.name], t.name) for t in graph.inputs)
        for name, constant in graph.overridable.items():
            if id(constant) in held:
                proto.input.append(graph.value_infos[name])
        proto.output.extend(
            _named(info, t.name) for t, info in zip(graph.outputs, graph.output_infos, strict=True)
        )
        # Every weight is stored in the outermost graph: one shared by two branches is stored once.
        if is_top:
            for constant in held.values():
                tensor_proto = store(constant)
                if tensor_proto is not None:
                    proto.initializer.append(tensor_proto)
        taken = {v.name for v in (*proto.input, *proto.output)}
        alive = {t.name for n in graph.nodes for t in n.outputs if t.name}
        proto.value_info.extend(_named(v, k) for k, v in graph.value_infos.items() if k in alive and k not in taken)
        known = alive | taken
        proto.quantization_annotation.extend(q for q in graph.quantization_annotation if q.tensor_name in known)
        return proto

    def _export_node(self, node: Node, held: dict[int, Constant], store: Store) -> NodeProto:
        proto = NodeProto(op_type=node.op, name=node.name or "", domain=node.domain or "")
        proto.MergeFrom(getattr(node, "extra", NodeProto()))
        proto.input.extend(t.name for t in node.inputs)
        proto.output.extend(t.name for t in node.outputs)
        for key, value in node.attrs.items():
            if isinstance(value, AttributeProto):
                proto.attribute.append(value)
            elif isinstance(value, Graph):
                attr = proto.attribute.add(name=key, type=AttributeProto.GRAPH)
                attr.g.CopyFrom(self._export_graph(value, held, store, is_top=False))
            elif isinstance(value, list) and not value:
                proto.attribute.append(helper.make_attribute(key, value, attr_type=AttributeProto.INTS))
            else:
                proto.attribute.append(helper.make_attribute(key, value))
        return proto


def _named(info: ValueInfoProto, name: str) -> ValueInfoProto:
    if info.name == name:
        return info
    renamed = ValueInfoProto()
    renamed.CopyFrom(info)
    renamed.name = name
    return renamed


def _dense(sparse: onnx.SparseTensorProto) -> NDArray[Any]:
    """The dense array of a sparse initializer. ONNX IR: indices are linear [NNZ] or coordinates [NNZ, rank]."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dims = tuple(sparse.dims)
    if any(d < 0 for d in dims) or int(np.prod(dims, dtype=object)) > 1 << 31:
        raise ModelError(f"sparse tensor {sparse.values.name!r} has dimensions {list(dims)}, too large to hold")
    dense = np.zeros(dims, values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
