"""Model: a graphsurgeon graph plus what graphsurgeon forgets (metadata, docs, opsets, the input/output contract).

graphsurgeon's importer drops attributes it does not know, doc strings and metadata, and its exporter rebuilds the types
of inputs and outputs. So from_proto.py and to_proto.py do that, and graphsurgeon serves for what it is good at: nodes
and tensors that know their producers and consumers, through subgraphs too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxshot.errors import ModelError
from onnxshot.graph import weights
from onnxshot.graph.from_proto import Importer, own_names
from onnxshot.graph.ir import Constant, Graph, Node, Tensor
from onnxshot.graph.to_proto import Store, export_graph

_ORIGIN = ("stored_as", "made_by", "made_at")  # what passes note at a constant
_KEEP_INLINE = 4096  # bytes up to which a weight stays in a skeleton: shapes, axes, small scales


class Model:
    """An ONNX model that can be edited. The one mutable thing in onnxshot.

    Attributes:
        graph: the top-level graph; its nodes are always in topological order when a pass starts.
        path: where it was read from, if it was.
        external_data: True where the file it came from keeps weights in other files.
        data_files: those files.
        notes: what was done to it on the way that a user should know, for the report.
        spelled: names of nodes that are written as another op now -> the op that a user knows.
        former: names of tensors that an edit took out -> the tensor that its layer gives now. A user knows the former.
        tied: names of weights that are equal to another one, or to its transpose, or read in several ways.
        stated: names of the tensors inside whose shapes the file has told.
        known_graphs: every graph it was made of; ones that an edit took out are still listed. `graphs` walks the rest.
    """

    def __init__(self, proto: ModelProto, folder: Path | None = None, path: Path | None = None) -> None:
        self.path = path
        self.external_data = False
        self.data_files: tuple[Path, ...] = ()
        self.notes: list[str] = []
        self.former: dict[str, str] = {}
        self.tied: frozenset[str] = frozenset()
        self.stated = frozenset(info.name for info in proto.graph.value_info)
        self.spelled: dict[str, str] = {}
        self._folder = folder
        self._adopt(proto, {})

    def _adopt(self, proto: ModelProto, lifted: Mapping[str, Constant]) -> None:
        """Take over a ModelProto: everything but its graph goes to the envelope. lifted: weights of a skeleton."""
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
        self._names = set(own_names(proto.graph))
        self._counts: dict[str, int] = {}
        importer = Importer(self._folder, self.opset, self.fresh, lifted)
        self.graph, self.known_graphs = importer.graph(proto.graph), importer.graphs
        self.external_data |= importer.external_data

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
        if len(self.known_graphs) == 1:  # no node holds another, and none needs to be asked
            yield stack.pop()
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

    def origins(self) -> dict[str, dict[str, object]]:
        """What is known of the weights that they do not hold, by name: stored type, and the node they were made by."""
        found = {c.name: {key: getattr(c, key, None) for key in _ORIGIN} for c in self.constants()}
        return {name: known for name, known in found.items() if any(known.values())}

    def mark_origins(self, origins: Mapping[str, Mapping[str, object]]) -> None:
        """Remember that of the weights that still have these names."""
        for constant in self.constants() if origins else ():
            for key, value in origins.get(constant.name, {}).items():
                if value is not None:
                    setattr(constant, key, value)

    def stored_types(self) -> dict[str, int]:
        """The element types that weights were stored in where they have a wider one now, by the weight's name."""
        return {c.name: int(c.stored_as) for c in self.constants() if getattr(c, "stored_as", 0)}

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

    def forget_inferred(self) -> None:
        """Forget the shapes of tensors inside that the file did not tell: those of 1,000 nodes take 100 kB."""
        ports = (t.name for t in (*self.graph.inputs, *self.graph.outputs))
        kept = self.stated.union(ports, self.graph.overridable)
        self.graph.value_infos = {name: info for name, info in self.graph.value_infos.items() if name in kept}

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
        keep, overridable, origins = self.envelope, self.graph.overridable, self.origins()
        self._adopt(proto, lifted)
        self.mark_origins(origins)
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
        export_graph(proto.graph, self.graph, held, store)
        # Every weight is stored in the outermost graph: one shared by two branches is stored once.
        for constant in held.values():
            tensor_proto = store(constant)
            if tensor_proto is not None:
                proto.graph.initializer.append(tensor_proto)
        if proto.ir_version < 4 and any(c.name not in self.graph.overridable for c in held.values()):
            proto.ir_version = 4  # below 4 every initializer must be an input as well
        return proto
