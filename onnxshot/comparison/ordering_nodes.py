"""Make nodes that order or select values pick the same in both models: TopK, NonMaxSuppression, NonZero, Multinomial.

Two nearly equal values change places with the least noise, and everything after them is then compared with its
neighbour. Therefore the candidate must pick what the float model picks. What it would have picked is compared as a set
(see `pick_overlap`). The values the nodes sort by are compared too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshot.comparison.pick_overlap import picked_boxes, picked_places, picked_rows
from onnxshot.comparison.proto_edits import (
    PREFIX,
    STANDARD,
    attribute,
    bodies,
    graphs,
    makers,
    named,
    opset_of,
    reads,
    replace_nodes,
    require_domain,
)

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Op:
    """Which output holds the picks, which input is sorted by (key), and which input holds the boxes."""

    picks: int
    key: int
    boxes: int | None = None


_OPS = {
    "TopK": _Op(picks=1, key=0),
    "NonMaxSuppression": _Op(picks=0, key=1, boxes=0),
    "NonZero": _Op(picks=0, key=0),
    "Multinomial": _Op(picks=0, key=0),
}
_MULTIPLIES = frozenset(
    ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention")
)
_COMPARES = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"))
_LOGIC = frozenset(("And", "Or", "Not", "Xor", "Cast", "Where"))
_MOVES = frozenset(("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"))
_GATHER_ELEMENTS = 11  # first opset with it; before that, ONNX Runtime has a GatherND of its own
_SAME = 1e-3  # relative to the largest value; the order of additions changes far less


@dataclass(frozen=True, slots=True)
class Order:
    """One ordering node of the float model.

    Attributes:
        number: Its number among those found; names of added tensors contain it.
        node: Its name.
        op: Its operator.
        outputs: Names of its outputs, by which it is found in another model.
        axis: The axis that TopK sorts along.
        centres: True if the boxes of NonMaxSuppression are (x, y, width, height).
        place: How many nodes of the same operator come before it.
        coordinates: True if imposed values of TopK must be gathered by coordinates, as there is no GatherElements.
    """

    number: int
    node: str
    op: str
    outputs: tuple[str, ...]
    axis: int = -1
    centres: bool = False
    place: int = 0
    coordinates: bool = False

    @property
    def picks(self) -> str:
        """Name of the added output with the model's own picks."""
        return f"{PREFIX}picks/{self.number}"

    @property
    def imposed(self) -> str:
        """Name of the added input with the picks to use."""
        return f"{PREFIX}imposed/{self.number}"

    @property
    def imposed_at(self) -> str:
        """Name of the added input with the same picks as coordinates."""
        return f"{PREFIX}imposed_at/{self.number}"

    @property
    def boxes(self) -> str:
        """Name of the added output with the boxes."""
        return f"{PREFIX}boxes/{self.number}"

    def matched(self, wanted: Tensors, got: Tensors) -> tuple[int, int]:
        """Number of picks that both models share, and number of picks."""
        mine, other = wanted[self.picks], got[self.picks]
        if self.op == "NonMaxSuppression":
            boxes = wanted[self.boxes], got[self.boxes]
            return picked_boxes(mine, other, boxes, centres=self.centres)
        if self.op == "NonZero":
            return picked_places(mine, other)
        if self.op == "Multinomial" and mine.shape == other.shape:
            return int(np.count_nonzero(mine == other)), mine.size
        return picked_rows(mine, other, self.axis)

    def feed(self, picks: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The added inputs that impose these picks."""
        if not self.coordinates:
            return {self.imposed: picks}
        at = np.indices(picks.shape, dtype=np.int64)
        at[self.axis % picks.ndim] = picks
        return {self.imposed: picks, self.imposed_at: np.moveaxis(at, 0, -1).copy()}

    def reversed_picks(self, picks: NDArray[Any]) -> NDArray[Any] | None:
        """The same picks in reverse order; None if there are too few."""
        axis = {"NonMaxSuppression": 0, "NonZero": 1, "Multinomial": 1}.get(self.op, self.axis)
        return np.flip(picks, axis).copy() if picks.ndim and picks.shape[axis] > 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a node is: its graph and index, the If whose branch the graph is, if any, and the makers of tensors."""

    graph: GraphProto
    number: int
    parent: NodeProto | None
    made: Mapping[str, NodeProto]

    @property
    def node(self) -> NodeProto:
        return self.graph.node[self.number]


def _places(graph: GraphProto) -> Iterator[_Place]:
    """The ordering nodes of a graph, and NonMaxSuppression in its branches.

    Exporters put it into the branch of an If that guards the case without boxes.
    """
    made = makers(graph)
    for i, node in enumerate(graph.node):
        if _is_ordering(node):
            yield _Place(graph, i, None, made)
        for body in bodies(node) if node.op_type == "If" else ():
            inner = {**made, **makers(body)}
            for j, one in enumerate(body.node):
                if one.op_type == "NonMaxSuppression" and _is_ordering(one):
                    yield _Place(body, j, node, inner)


def ordering_nodes(proto: ModelProto) -> tuple[Order, ...]:
    """The ordering nodes of the main graph that sort computed values."""
    found, count = list[Order](), dict[str, int]()
    for at in _places(proto.graph):
        node = at.node
        place = count[node.op_type] = count.get(node.op_type, -1) + 1
        if not _depends_on_products(node.input[_OPS[node.op_type].key], at.made):
            continue
        found.append(
            Order(
                len(found), named(node), node.op_type, tuple(node.output), int(attribute(node, "axis", -1)),
                bool(attribute(node, "center_point_box", 0)), place,
                node.op_type == "TopK" and opset_of(proto) < _GATHER_ELEMENTS,
            )
        )  # fmt: skip
    return tuple(found)


def ordering_nodes_in_subgraphs(proto: ModelProto) -> tuple[str, ...]:
    """Names of the ordering nodes in subgraphs, whose picks are not imposed."""
    known = {name for at in _places(proto.graph) for name in at.node.output}
    inner = [node for graph in list(graphs(proto.graph))[1:] for node in graph.node]
    return tuple(named(n) for n in inner if _is_ordering(n) and n.op_type != "NonZero" and not known & set(n.output))


def same_nodes(proto: ModelProto, wanted: Sequence[Order]) -> dict[int, _Place] | None:
    """The node of this model for each ordering node, by its number; None if one is missing."""
    own = list(_places(proto.graph))
    found = dict[int, _Place]()
    for order in wanted:
        names = {name for name in order.outputs if name}
        candidates = [at for at in own if at.node.op_type == order.op]
        by_name = [at for at in candidates if names & set(at.node.output)]
        if not by_name and order.place >= len(candidates):
            return None
        found[order.number] = by_name[0] if by_name else candidates[order.place]
    return found if len({id(at) for at in found.values()}) == len(wanted) else None


def add_orders(proto: ModelProto, wanted: Sequence[Order], imposed: Sequence[Order]) -> None:
    """Add the picks and sort keys of these nodes as outputs, and let inputs impose the picks of some; in place.

    Args:
        proto: The model to edit. It must have all the nodes (see `same_nodes`).
        wanted: Nodes whose picks and sort keys become outputs.
        imposed: Those of them whose picks come from an input.

    Raises:
        KeyError: The model lacks a node.
    """
    graph = proto.graph
    places = same_nodes(proto, wanted) or {}
    made = makers(graph)
    roots = {_root(output.name, made) for output in graph.output}
    instead = dict[int, list[NodeProto]]()
    branches = dict[bytes, list[tuple[_Place, list[NodeProto], tuple[str, ...]]]]()
    for order in wanted:
        at, op = places[order.number], _OPS[order.op]
        keys = [key for key in _sort_keys(at.node, at.made) if _root(key, at.made) not in roots]
        given = {sort_key_name(order, i): key for i, key in enumerate(keys)}
        given |= {order.boxes: at.node.input[op.boxes]} if op.boxes is not None else {}
        nodes = [helper.make_node("Identity", [tensor], [name]) for name, tensor in given.items()]
        nodes += _with_picks(at.node, order, impose=order in imposed)
        if at.parent is None:
            instead[at.number] = nodes
        else:
            branches.setdefault(at.graph.SerializeToString(), []).append((at, nodes, (order.picks, *given)))
        _add_outputs(graph, [order.picks, *given])
    for name in (name for order in imposed for name in (order.imposed, *([order.imposed_at] * order.coordinates))):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    if any(order.coordinates for order in imposed):
        require_domain(proto, "com.microsoft")
    for found in branches.values():
        _expose_branch(found)
    replace_nodes(graph, instead)


def _expose_branch(found: Sequence[tuple[_Place, list[NodeProto], tuple[str, ...]]]) -> None:
    """Replace nodes of a branch, and make tensors of theirs outputs of the If. The other branch gives empty tensors."""
    branch, parent = found[0][0].graph, found[0][0].parent
    assert parent is not None
    replace_nodes(branch, {at.number: nodes for at, nodes, _ in found})
    names = [name for _, _, part in found for name in part]
    for body in bodies(parent):
        makes = {name for node in body.node for name in node.output}
        for name in names:
            inside = f"{name}/inside/{len(body.node)}"
            if name in makes:
                body.node.append(helper.make_node("Identity", [name], [inside]))
            else:
                picks = name.startswith(f"{PREFIX}picks/")
                empty = np.zeros((0, 3), np.int64) if picks else np.zeros((1, 0, 4), np.float32)
                body.node.append(helper.make_node("Constant", [], [inside], value=numpy_helper.from_array(empty)))
            body.output.add(name=inside)
    parent.output.extend(names)


def sort_key_name(order: Order, number: int) -> str:
    """Name of the added output with a sort key of the node."""
    return f"{PREFIX}before/{order.number}/{number}"


def visible_outputs(
    found: Sequence[Order], base: Tensors, turned: Mapping[int, Tensors | None], outputs: Sequence[str]
) -> dict[int, frozenset[str]]:
    """The outputs in which each order is visible, by its number. An order that is visible in none is left out.

    An order also counts as visible if it changes the picks of another order that is visible. A sum over the picks, as
    in a mixture of experts, does not depend on their order. If such a node picks differently, that is an error like any
    other.

    Args:
        found: The ordering nodes.
        base: Outputs and picks of the model.
        turned: The same with one order reversed, by its number; None if it could not be reversed.
        outputs: Names of the model's outputs.
    """
    seen = dict[int, frozenset[str]]()
    for order in found:
        other = turned[order.number]
        names = [o for o in outputs if o in base and (other is None or not nearly_equal(base[o], other[o]))]
        if names:
            seen[order.number] = frozenset(names)
    changed = True
    while changed:
        changed = False
        for order in found:
            other = turned[order.number]
            if order.number in seen or other is None:
                continue
            later = [o for o in found if o.number in seen and not nearly_equal(base[o.picks], other[o.picks])]
            if later:
                seen[order.number] = frozenset().union(*(seen[o.number] for o in later))
                changed = True
    return seen


def nearly_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether values are equal up to the order of additions."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    finite = np.where(np.isfinite(one), one, 0)
    return bool(np.allclose(other, one, rtol=0.0, atol=_SAME * float(np.abs(finite).max(initial=0.0)), equal_nan=True))


def _is_ordering(node: NodeProto) -> bool:
    return node.op_type in _OPS and node.domain in STANDARD and any(node.output)


def _depends_on_products(name: str, made: Mapping[str, NodeProto]) -> bool:
    """Whether products of matrices go into a tensor's values. Its shape does not count."""
    waiting, seen = [name], set[str]()
    while waiting:
        current = waiting.pop()
        node = made.get(current)
        if node is None or current in seen or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in _MULTIPLIES or node.domain not in STANDARD:
            return True
        seen.add(current)
        waiting += reads(node)
    return False


def _sort_keys(node: NodeProto, made: Mapping[str, NodeProto]) -> Iterator[str]:
    """The tensors a node sorts by; for a condition, the computed values that are compared in it."""
    waiting, seen = [node.input[_OPS[node.op_type].key]], set[str]()
    if node.op_type != "NonZero":
        yield waiting[0]
        return
    while waiting:
        name = waiting.pop()
        maker = made.get(name)
        if maker is None or name in seen:
            continue
        seen.add(name)
        if maker.op_type in _COMPARES:
            yield from (x for x in maker.input if _depends_on_products(x, made))
        elif maker.op_type in _LOGIC or maker.op_type in _MOVES:
            waiting += list(maker.input)


def _root(name: str, made: Mapping[str, NodeProto]) -> str:
    """The tensor that this one only reshapes."""
    while (node := made.get(name)) is not None and node.op_type in _MOVES:
        name = node.input[0]
    return name


def _with_picks(node: NodeProto, order: Order, *, impose: bool) -> list[NodeProto]:
    """The node with its picks as an output. `impose`: its readers get the picks of an input instead."""
    own = NodeProto()
    own.CopyFrom(node)
    slot = _OPS[order.op].picks
    while len(own.output) <= slot:
        own.output.append("")
    own.output[:] = [f"{PREFIX}own/{order.number}/{i}" for i in range(len(own.output))]
    nodes = [own, helper.make_node("Cast", [own.output[slot]], [order.picks], to=TensorProto.INT64)]
    kind = int(attribute(node, "dtype", TensorProto.INT32)) if order.op == "Multinomial" else TensorProto.INT64
    for i, name in enumerate(node.output):
        if not name:
            continue
        if not impose:
            nodes.append(helper.make_node("Identity", [own.output[i]], [name]))
        elif i == slot:
            nodes.append(helper.make_node("Cast", [order.imposed], [name], to=kind))
        else:
            nodes.append(_gather_node(node.input[0], order, name))
    return nodes


def _gather_node(values: str, order: Order, name: str) -> NodeProto:
    """The node that gathers values at the imposed places of TopK."""
    if not order.coordinates:
        return helper.make_node("GatherElements", [values, order.imposed], [name], axis=order.axis)
    return helper.make_node("GatherND", [values, order.imposed_at], [name], domain="com.microsoft")


def _add_outputs(graph: GraphProto, names: Sequence[str]) -> None:
    for name in names:
        graph.output.add(name=name)
