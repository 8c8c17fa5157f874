"""The editable model: a graphsurgeon graph, and everything of the ONNX file that graphsurgeon does not keep.

graphsurgeon's nodes and tensors know their producers and consumers, in subgraphs too. But its importer drops unknown
attributes, doc strings and metadata, and its exporter changes the types of inputs and outputs. from_proto.py and
to_proto.py therefore take the place of its importer and exporter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxshot.errors import ModelError
from onnxshot.graph import weights
from onnxshot.graph.collection import collector_paused
from onnxshot.graph.from_proto import Importer, own_names
from onnxshot.graph.ir import Constant, Graph, Node, Tensor
from onnxshot.graph.own_file import OwnFile, check_all
from onnxshot.graph.renamed import Renamed
from onnxshot.graph.to_proto import Store, export_graph

MOST_BYTES = (1 << 31) - (1 << 24)
"""Most bytes of weights in one ModelProto: protobuf's limit is 2 GiB, and the graph takes some."""

_ORIGIN = ("stored_as", "made_by", "made_at")  # attributes that passes set on constants
_KEEP_INLINE = 4096  # bytes: smaller constants (shapes, axes, scales) stay in a skeleton


def data_suffix(read: Iterable[Path]) -> str:
    """What is added to the name of a written .onnx file to name its data file: "_data" or ".data".

    Optimum and transformers.js name the data file of model.onnx model.onnx_data; others name it model.onnx.data. A
    model that was read with such a file is written with such a file.

    Args:
        read: data files that the model was read with.
    """
    return "_data" if any(".onnx_data" in file.name for file in read) else ".data"


class Model:
    """An ONNX model that passes edit in place.

    Args:
        proto: the parsed model; it is not changed.
        folder: the folder of external data; None for a model without.
        path: the file that the model was read from, if any.
        own: the same file, where the large weights stay in it (`lean_parse`).

    Attributes:
        graph: the top-level graph. Its nodes are in topological order whenever a pass starts.
        path: the file that the model was read from; None for a model given as an object.
        external_data: whether weights were stored in separate files.
        data_files: those files.
        read_files: the .onnx file and those files, as they were when the model was loaded.
        notes: sentences for the report about what happened to the model.
        original_ops: node name -> its operator in the user's file, for nodes that a pass has rewritten as another.
        renamed: name of a tensor that an edit removed -> name of the tensor that its layer computes now; users know
            the former.
        tied: names of weights that equal another weight or its transpose, or that several operators read differently.
        stated: names of the inner tensors whose shapes the file states.
        known_graphs: every graph the model was built from, including those that edits have removed; `graphs` yields
            only those that are left.

    Raises:
        ModelError: the graph is not a valid ONNX graph.

    Example:
        >>> import onnx.parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        >>> model = Model(onnx.parser.parse_model(text))
        >>> model.opset, [node.op for node in model.graph.nodes]
        (17, ['Relu'])
    """

    def __init__(
        self, proto: ModelProto, folder: Path | None = None, path: Path | None = None, own: OwnFile | None = None,
        lifted: Mapping[str, Constant] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.external_data = False
        self.data_files: tuple[Path, ...] = ()
        self.read_files: tuple[OwnFile, ...] = ()
        self.notes: list[str] = []
        self.renamed = Renamed()
        self.tied: frozenset[str] = frozenset()
        self.stated = frozenset(info.name for info in proto.graph.value_info)
        self.original_ops: dict[str, str] = {}
        self._folder, self._own = folder, own
        self._adopt(proto, lifted or {})

    @property
    def data_suffix(self) -> str:
        """What is added to the name of a written .onnx file to name its data file; see `data_suffix`."""
        return data_suffix(self.data_files)

    def _adopt(self, proto: ModelProto, lifted: Mapping[str, Constant]) -> None:
        """Read a ModelProto: its graph into `graph`, all other fields into `envelope`; see `skeleton` for `lifted`."""
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
        # Collect all names first: a weight that moves out of a subgraph must not get the name of a later tensor.
        self.take_names(own_names(proto.graph))
        importer = Importer(self._folder, self.opset, self.fresh, lifted, own=self._own)
        with collector_paused():
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
        """Import an operator domain that a new node uses; no change where it is imported already."""
        if all(entry.domain != domain for entry in self.envelope.opset_import):
            self.envelope.opset_import.append(helper.make_opsetid(domain, version))

    @property
    def metadata(self) -> dict[str, str]:
        """A copy of the model's metadata_props."""
        return {p.key: p.value for p in self.envelope.metadata_props}

    def set_metadata(self, key: str, value: str) -> None:
        """Add or replace one metadata entry."""
        for entry in self.envelope.metadata_props:
            if entry.key == key:
                entry.value = value
                return
        self.envelope.metadata_props.add(key=key, value=value)

    def graphs(self) -> Iterator[Graph]:
        """Yield the top-level graph and every subgraph, outer before inner."""
        stack = [self.graph]
        if len(self.known_graphs) == 1:  # there are no subgraphs: skip the search through all nodes
            yield stack.pop()
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph.nodes:
                if node.attrs:
                    stack.extend(v for v in node.attrs.values() if isinstance(v, Graph))

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Yield every node, subgraphs included, as (graph that holds it, node)."""
        for graph in self.graphs():
            for node in graph.nodes:
                yield graph, node

    def tensors(self) -> dict[str, Tensor]:
        """Return all named tensors by name, including those of subgraphs."""
        found: dict[str, Tensor] = {}
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            found.setdefault(tensor.name, tensor)
        for _, node in self.walk():
            for tensor in (*node.inputs, *node.outputs):
                if tensor.name:
                    found.setdefault(tensor.name, tensor)
        return found

    def weight_bytes(self) -> int:
        """Total size of all constants in bytes, subgraphs included."""
        return sum(weights.size_bytes(t) for t in self.constants())

    def constants(self) -> list[Constant]:
        """Return every constant in use once: those that nodes read, in node order, then outputs and annotations."""
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
        """Return what passes recorded about constants, by name: the stored type, and the node that produced them."""
        found = {c.name: {key: getattr(c, key, None) for key in _ORIGIN} for c in self.constants()}
        return {name: known for name, known in found.items() if any(known.values())}

    def mark_origins(self, origins: Mapping[str, Mapping[str, object]]) -> None:
        """Set on constants what `origins` returned, where they still have the same names."""
        for constant in self.constants() if origins else ():
            for key, value in origins.get(constant.name, {}).items():
                if value is not None:
                    setattr(constant, key, value)

    def stored_types(self) -> dict[str, int]:
        """Return name -> ONNX element type in the user's file, for weights that were converted to a wider type."""
        return {c.name: int(c.stored_as) for c in self.constants() if getattr(c, "stored_as", 0)}

    def value_info(self, name: str) -> ValueInfoProto | None:
        """Return the type and shape of a tensor of the top-level graph from the file or shape inference, else None."""
        info = self.graph.value_infos.get(name)
        return info if isinstance(info, ValueInfoProto) else None

    def shape(self, tensor: Tensor) -> tuple[int | str | None, ...] | None:
        """Return the shape of a tensor.

        Returns:
            One entry per dimension: int; str for a symbolic dimension; None for an unknown one, or one stated as -1.
            None where the rank is unknown.
        """
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        info = self.value_info(tensor.name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
            for d in info.type.tensor_type.shape.dim
        )

    def check_files(self) -> None:
        """Check that the files of the model are as they were when it was loaded; without files, there is nothing to do.

        Raises:
            ModelError: one was changed, replaced or removed.
        """
        check_all(self.read_files)

    def forget_inferred(self) -> None:
        """Drop inferred shapes of inner tensors that the file did not state: for 1,000 nodes they take 100 kB."""
        ports = (t.name for t in (*self.graph.inputs, *self.graph.outputs))
        kept = self.stated.union(ports, self.graph.overridable)
        self.graph.value_infos = {name: info for name, info in self.graph.value_infos.items() if name in kept}

    def elem_type(self, tensor: Tensor) -> int:
        """Return the ONNX element type of a tensor (TensorProto.DataType); 0 where it is unknown."""
        if isinstance(tensor, Constant):
            return weights.elem_type(tensor)
        info = self.value_info(tensor.name)
        return 0 if info is None else int(info.type.tensor_type.elem_type)

    # ------------------------------------------------------------------ names

    def fresh(self, base: str, suffix: str = "") -> str:
        """Return a new name, `base` and `suffix` joined, that no tensor or node of the model or its subgraphs has."""
        stem = "_".join(part for part in (base, suffix) if part) or "tensor"
        name, count = stem, self._counts.get(stem, 1)
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._names.add(name)
        return name

    def take_names(self, names: Iterable[str]) -> None:
        """Let `fresh` return no name among these, and any other."""
        self._names = set(names)
        self._counts: dict[str, int] = {}

    # ------------------------------------------------------------------ export

    def to_proto(self) -> ModelProto:
        """Return the model as one ModelProto that contains its weights.

        Raises:
            ModelError: it would exceed protobuf's limit of 2 GiB.
        """
        if self.weight_bytes() > MOST_BYTES:
            raise ModelError("the model is over 2 GiB and does not fit one ModelProto", "save it to a path instead")
        return self.export(weights.to_proto)

    def skeleton(self) -> tuple[ModelProto, dict[str, Constant]]:
        """Return the model without its large weights, and those weights by name.

        Large weights become inputs of the graph. ONNX's shape inference, checker and version converter need no values
        of large weights, and they copy the model several times.
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
        """Replace the graph by a skeleton that another tool has rewritten, and put the lifted weights back into it."""
        keep, overridable, origins = self.envelope, self.graph.overridable, self.origins()
        self._adopt(proto, lifted)
        self.mark_origins(origins)
        kept = {t.name: t for t in self.constants() if t.name in overridable}
        self.graph.overridable = {name: kept[name] for name in overridable if name in kept}
        # ONNX's C++ tools drop metadata, doc strings and the producer, so the model keeps its own.
        rewritten = self.envelope
        self.envelope = keep
        del self.envelope.opset_import[:]
        self.envelope.opset_import.extend(rewritten.opset_import)
        del self.envelope.functions[:]
        self.envelope.functions.extend(rewritten.functions)
        self.envelope.ir_version = max(keep.ir_version, rewritten.ir_version)

    def export(self, store: Store) -> ModelProto:
        """Build the ModelProto; `store` turns each constant into its TensorProto, or into None to leave it out."""
        proto = ModelProto()
        proto.CopyFrom(self.envelope)
        held = {id(c): c for c in self.constants()}
        export_graph(proto.graph, self.graph, held)
        # All weights are stored in the outermost graph, so that one shared by two branches is stored once.
        for constant in held.values():
            tensor_proto = store(constant)
            if tensor_proto is not None:
                proto.graph.initializer.append(tensor_proto)
        if proto.ir_version < 4 and any(c.name not in self.graph.overridable for c in held.values()):
            proto.ir_version = 4  # below IR version 4, every initializer must be an input too
        return proto
