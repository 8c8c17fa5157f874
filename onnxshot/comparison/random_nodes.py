"""Make random operators draw the same numbers in two models: both read them from the same table.

The random generator of a runtime keeps its state from run to run. A seed therefore gives equal numbers only to models
that run the same samples in the same order. A table does not depend on the order, and also works in loops and branches.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshot.comparison.proto_edits import (
    PREFIX,
    STANDARD,
    attribute,
    graphs,
    named,
    opset_of,
    parsed,
    replace_nodes,
    require_domain,
)
from onnxshot.errors import ModelError
from onnxshot.graph import local_functions, ops
from onnxshot.graph.load import first_line

RANDOM = ops.RANDOM | {"Dropout"}
"""Operators that draw random numbers; Dropout only in training mode."""
_SIZE = 65_521  # length of a table: a prime, so that rows of a tensor do not repeat each other
_SPREAD = 997.0  # factor before samples are rounded to integers, so that different samples differ
_START = f"{PREFIX}start"
_RANGE = 11  # first opset with Range; before that, ONNX Runtime has one of its own
_CAST_LIKE = 15
_TABLES = {"normal": f"{PREFIX}normal", "uniform": f"{PREFIX}uniform", "gumbel": f"{PREFIX}gumbel"}


@dataclass(frozen=True, slots=True)
class RandomSource:
    """A node that draws random numbers.

    Attributes:
        node: Its name.
        op: Its operator.
        output: Name of the tensor it makes, by which it is found in another model.
    """

    node: str
    op: str
    output: str


def random_sources(proto: ModelProto) -> tuple[RandomSource, ...]:
    """All nodes that draw random numbers, in graph order, subgraphs included. Functions must be inlined."""
    constants = {t.name: t for graph in graphs(proto.graph) for t in graph.initializer}
    for graph in graphs(proto.graph):
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
    return tuple(
        RandomSource(named(node), node.op_type, node.output[0])
        for graph in graphs(proto.graph)
        for node in graph.node
        if _draws(node, constants)
    )


def inlined(proto: ModelProto) -> ModelProto:
    """The model with its functions inlined. Raises ModelError if that fails."""
    try:
        return local_functions.inlined(proto)
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"the functions of the model cannot be inlined: {first_line(e)}") from e


def with_fixed_randomness(proto: ModelProto) -> ModelProto:
    """The model, made to draw the same numbers in every run. Returns the model itself if it draws none, else a copy."""
    flat = inlined(proto)
    if not random_sources(flat):
        return proto
    copy = parsed(flat)
    fix_randomness(copy)
    return copy


def fix_randomness(proto: ModelProto, known: tuple[RandomSource, ...] = ()) -> None:
    """Replace random nodes by reads from a table, in place.

    Args:
        proto: The model to edit.
        known: Random nodes of the model to compare with. A node that matches one of them draws the same numbers. Nodes
            match by the name of their output, otherwise by their position among the nodes of the same operator.
    """
    own = random_sources(proto)
    numbers = _numbers(own, known)
    if not numbers:
        return
    _add_tables(proto)
    writer = _Writer(proto, opset_of(proto), _types(proto))
    begins = writer.start()
    for graph in graphs(proto.graph):
        instead = {
            i: writer.nodes(node, numbers[node.output[0]])
            for i, node in enumerate(graph.node)
            if node.op_type in RANDOM and node.output and node.output[0] in numbers
        }
        if instead:
            replace_nodes(graph, instead)
    nodes = [*begins, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _numbers(own: tuple[RandomSource, ...], known: tuple[RandomSource, ...]) -> dict[str, int]:
    """Offset into the tables of each random node, by the name of its output."""
    left = {source.output: source for source in known}
    name_of = {source.output: source.output for source in own if left.pop(source.output, None) is not None}
    for source in own:
        if source.output not in name_of:
            other = next((s for s in left.values() if s.op == source.op), source)
            left.pop(other.output, None)
            name_of[source.output] = other.output
    return {output: zlib.crc32(name.encode()) % _SIZE for output, name in name_of.items()}


def _may_draw(node: NodeProto) -> bool:
    return node.op_type in RANDOM and node.domain in STANDARD


def _draws(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    if not _may_draw(node) or not node.output:
        return False
    if node.op_type != "Dropout":
        return True
    training = node.input[2] if len(node.input) > 2 else ""
    known = constants.get(training)
    return bool(training) and (known is None or bool(numpy_helper.to_array(known).all()))


def _add_tables(proto: ModelProto) -> None:
    rng = np.random.default_rng(0)
    uniform = (np.arange(_SIZE) + 0.5) / _SIZE
    rng.shuffle(uniform)
    tables = {"normal": rng.standard_normal(_SIZE), "uniform": uniform, "gumbel": -np.log(-np.log(uniform))}
    for name, values in tables.items():
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), _TABLES[name]))


def _fed(proto: ModelProto) -> str:
    """The first input that holds numbers; empty if there is none."""
    stored = {t.name for t in proto.graph.initializer}
    fed = (i for i in proto.graph.input if i.name not in stored and i.type.HasField("tensor_type"))
    return next((i.name for i in fed if i.type.tensor_type.elem_type != TensorProto.STRING), "")


def _types(proto: ModelProto) -> dict[str, int]:
    """Element types of tensors, as far as the model states them."""
    infos = (i for g in graphs(proto.graph) for i in (*g.input, *g.output, *g.value_info))
    return {i.name: i.type.tensor_type.elem_type for i in infos if i.type.HasField("tensor_type")}


@dataclass(slots=True)
class _Writer:
    """Makes the nodes that draw from a table."""

    proto: ModelProto
    opset: int
    types: Mapping[str, int]
    _made: int = field(init=False, default=0)
    _nodes: list[NodeProto] = field(init=False, default_factory=list)

    def start(self) -> list[NodeProto]:
        """Nodes that compute a sample's offset into the table of random numbers: the integer sum of its first input.

        An integer sum does not depend on the order of additions. If all samples started at the same place, one rare
        number would appear in all of them.
        """
        self._nodes, fed = [], _fed(self.proto)
        if not fed:
            self._constant(np.zeros((), np.int64), _START)
            return self._nodes
        scaled = self._add("Mul", self._add("Cast", fed, to=TensorProto.FLOAT), self._float(_SPREAD))
        total = self._add("ReduceSum", self._add("Cast", scaled, to=TensorProto.INT64), keepdims=0)
        self._add("Identity", self._rest(total), output=_START)
        return self._nodes

    def nodes(self, node: NodeProto, offset: int) -> list[NodeProto]:
        """The nodes that replace a random node. Its outputs keep their names."""
        self._nodes = []
        getattr(self, f"_{node.op_type.lower().removesuffix('like')}")(node, offset)
        return self._nodes

    def _randomnormal(self, node: NodeProto, offset: int) -> None:
        drawn = self._drawn("normal", self._shape(node), offset)
        self._scaled(node, drawn, attribute(node, "scale", 1.0), attribute(node, "mean", 0.0))

    def _randomuniform(self, node: NodeProto, offset: int) -> None:
        low, high = attribute(node, "low", 0.0), attribute(node, "high", 1.0)
        self._scaled(node, self._drawn("uniform", self._shape(node), offset), high - low, low)

    def _scaled(self, node: NodeProto, drawn: str, scale: float, mean: float) -> None:
        larger = self._add("Mul", drawn, self._float(scale))
        self._typed(node, self._add("Add", larger, self._float(mean)))

    def _bernoulli(self, node: NodeProto, offset: int) -> None:
        drawn = self._drawn("uniform", self._shape(node), offset)
        chance = self._add("Cast", node.input[0], to=TensorProto.FLOAT)
        self._typed(node, self._add("Less", drawn, chance))

    def _multinomial(self, node: NodeProto, offset: int) -> None:
        """For each row the index of the highest logit plus Gumbel noise, which is a sample of the softmax."""
        count = int(attribute(node, "sample_size", 1))
        classes = self._add("Gather", self._add("Shape", node.input[0]), self._ints([1]))
        noise = self._drawn("gumbel", self._add("Concat", self._ints([count]), classes, axis=0), offset)
        logits = self._add("Cast", self._add("Reshape", node.input[0], self._ints([0, 1, -1])), to=TensorProto.FLOAT)
        best = self._add("ArgMax", self._add("Add", logits, noise), axis=2, keepdims=0)
        kind = int(attribute(node, "dtype", TensorProto.INT32))
        self._add("Cast", best, to=kind, output=node.output[0])

    def _dropout(self, node: NodeProto, offset: int) -> None:
        """x / (1 - ratio) where a drawn number is above the ratio, else 0; x itself outside training mode."""
        x, training = node.input[0], node.input[2]
        ratio = self._add("Cast", node.input[1], to=TensorProto.FLOAT) if node.input[1] else self._float(0.5)
        drawn = self._drawn("uniform", self._add("Shape", x), offset)
        rests = self._add("Not", training)
        mask = self._add("Or", self._add("Not", self._add("Less", drawn, ratio)), rests)
        scale = self._add("Where", rests, self._float(1.0), self._add("Sub", self._float(1.0), ratio))
        kept = self._add("Where", mask, self._add("Cast", x, to=TensorProto.FLOAT), self._float(0.0))
        self._like(self._add("Div", kept, scale), x, node.output[0])
        if len(node.output) > 1 and node.output[1]:
            self._add("Identity", mask, output=node.output[1])

    # ------------------------------------------------------------------ helpers

    def _shape(self, node: NodeProto) -> str:
        """The shape to draw, as a tensor: the node's attribute, or the shape of its input."""
        for a in node.attribute:
            if a.name == "shape":
                return self._ints(list(a.ints))
        return self._add("Shape", node.input[0])

    def _drawn(self, table: str, shape: str, offset: int) -> str:
        """Consecutive numbers of a table from an offset on, in this shape; the table repeats at its end."""
        count = self._add("ReduceProd", shape, keepdims=0)
        start = self._add("Add", self._ints(offset), _START)
        step, end = self._ints(1), self._add("Add", count, start)
        domain = "" if self.opset >= _RANGE else "com.microsoft"
        if domain:
            require_domain(self.proto, domain)
        places = self._add("Range", start, end, step, domain=domain)
        return self._add("Reshape", self._add("Gather", _TABLES[table], self._rest(places)), shape)

    def _rest(self, values: str) -> str:
        """Remainders of integers divided by the table's size. Negative ones index from the end."""
        size = self._ints(_SIZE)
        return self._add("Sub", values, self._add("Mul", self._add("Div", values, size), size))

    def _typed(self, node: NodeProto, made: str) -> None:
        """Convert a tensor to the type that the node gives."""
        kind = int(attribute(node, "dtype", 0))
        if not kind and node.input:
            self._like(made, node.input[0], node.output[0])
            return
        self._add("Cast", made, to=kind or TensorProto.FLOAT, output=node.output[0])

    def _like(self, made: str, model: str, output: str) -> None:
        if self.opset >= _CAST_LIKE:
            self._add("CastLike", made, model, output=output)
        else:
            self._add("Cast", made, to=self.types.get(model) or TensorProto.FLOAT, output=output)

    def _float(self, value: float) -> str:
        return self._constant(np.asarray(value, np.float32))

    def _ints(self, value: int | list[int]) -> str:
        return self._constant(np.asarray(value, np.int64))

    def _constant(self, value: NDArray[Any], name: str = "") -> str:
        name = name or self._fresh()
        self._nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def _add(self, op: str, *inputs: str, output: str = "", domain: str = "", **attributes: int) -> str:
        name = output or self._fresh()
        node = helper.make_node(op, list(inputs), [name], domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return name

    def _fresh(self) -> str:
        self._made += 1
        return f"{PREFIX}noise/{self._made}"
