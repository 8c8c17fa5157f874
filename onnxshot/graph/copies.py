"""Copy a model without copying its weights: the copy has its own nodes and tensors, and shares the values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import ModelProto, ValueInfoProto

from onnxshot.graph.collection import collector_paused
from onnxshot.graph.ir import Constant, EmptyList, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model
from onnxshot.graph.renamed import Renamed

_RECORDED = ("stored_as", "made_by", "made_at")  # attributes that passes set on constants


def copy_of(model: Model) -> Model:
    """Return an independent copy of a model, with the same path and notes.

    Values of constants are shared: no pass changes them in place.
    """
    copy = Model.__new__(Model)
    copy.__dict__.update(model.__dict__)
    copy.envelope = ModelProto()
    copy.envelope.CopyFrom(model.envelope)
    copy.notes, copy.renamed, copy.original_ops = list(model.notes), Renamed(model.renamed), dict(model.original_ops)
    copier = _Copier({}, [])
    with collector_paused():
        copy.graph, copy.known_graphs = copier.graph(model.graph), copier.graphs
    copy.take_names(_names(copy))
    return copy


class _Copier:
    """Copies graphs.

    Attributes:
        made: id of a tensor -> its copy.
        graphs: all copied graphs, inner before outer.
    """

    def __init__(self, made: dict[int, Tensor], graphs: list[Graph]) -> None:
        self.made = made
        self.graphs = graphs

    def graph(self, given: Graph) -> Graph:
        """Copy a graph with its subgraphs; tensors of the graphs around it have been copied already."""
        inputs = [self.tensor(t) for t in given.inputs]
        nodes = [self._node(node) for node in given.nodes]
        outputs = [self.tensor(t) for t in given.outputs]
        graph = Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=given.name, opset=given.opset)
        # Types of removed tensors are left out: a new tensor may get the name of one.
        made = (t.name for node in given.nodes for t in node.outputs)
        names = {*made, *given.overridable, *(t.name for t in (*given.inputs, *given.outputs))}
        graph.value_infos = {name: _copied(info) for name, info in given.value_infos.items() if name in names}
        graph.input_order = dict(given.input_order)
        graph.output_infos = [_copied(info) for info in given.output_infos]
        graph.overridable = {name: self.tensor(constant) for name, constant in given.overridable.items()}
        graph.doc_string = given.doc_string
        graph.metadata_props = list(given.metadata_props)
        graph.quantization_annotation = list(given.quantization_annotation)
        graph.annotation_params = [self.tensor(t) for t in given.annotation_params]
        self.graphs.append(graph)
        return graph

    def tensor(self, given: Tensor) -> Tensor:
        """The copy of a tensor, made at its first use."""
        found = self.made.get(id(given))
        if found is None:
            if isinstance(given, Constant):
                found = Constant(given.name, given._values)
                for key in _RECORDED:
                    if getattr(given, key, None) is not None:
                        setattr(found, key, getattr(given, key))
            else:
                found = Variable(given.name, given.dtype, given.shape)
            self.made[id(given)] = found
        return found

    def _node(self, given: Node) -> Node:
        # The nodes of a subgraph become readers of a tensor before the node that holds the subgraph, as in a parsed
        # model: passes visit readers in this order.
        attrs = {key: self._attribute(value) for key, value in given.attrs.items()}
        inputs, outputs = ([self.tensor(t) for t in tensors] for tensors in (given.inputs, given.outputs))
        node = Node(given.op, given.name, attrs, inputs, outputs, given.domain)
        node.extra = given.extra
        return node

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, Graph):
            return self.graph(value)
        if isinstance(value, EmptyList):
            empty = EmptyList()
            empty.kind = value.kind
            return empty
        return list(value) if isinstance(value, list) else value


def _copied(info: ValueInfoProto) -> ValueInfoProto:
    made = ValueInfoProto()
    made.CopyFrom(info)
    return made


def _names(model: Model) -> Iterator[str]:
    """The names of all nodes and tensors in use."""
    yield from (constant.name for constant in model.constants())
    for graph in model.graphs():
        yield from (tensor.name for tensor in graph.inputs)
        yield from graph.overridable
        for node in graph.nodes:
            yield node.name
            yield from (tensor.name for tensor in node.outputs)
