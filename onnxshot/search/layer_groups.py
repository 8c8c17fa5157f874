"""Group the layers of a network by their place in it, so that a search measures few groups instead of many layers.

Names are not read. A residual block is what stands between the two operands of an Add of which one is computed from the
other: in a transformer, one attention, or one feed-forward part. Layers outside blocks, such as tables and the head,
are groups of their own. Layers that share a weight are always in one group.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from onnxshot.graph import Constant, Graph, Model, Node
from onnxshot.graph.ops import data_slots

MOST_GROUPS = 64

Group = tuple[Node, ...]


def layer_groups(
    model: Model, layers: Mapping[Node, Constant], same: Mapping[Constant, Constant], most: int = MOST_GROUPS
) -> list[Group]:
    """Group layers, as finely as the limit allows.

    The finest of these that has at most `most` groups: each layer; layers of a block that read the same tensor (the
    projections of queries, keys and values); blocks; 2, 3, ... consecutive blocks.

    Args:
        model: the model.
        layers: the layers, and the weight of each.
        same: a weight -> the weight that is stored in its place; without those that are stored themselves.
        most: largest number of groups; more are returned only where that many are tables of weights of their own.

    Returns:
        The groups in graph order.
    """
    order = [node for _, node in model.walk() if node in layers]
    blocks = {node: number for graph in model.graphs() for number, node in _blocks(graph, layers)}

    def shared(node: Node) -> Hashable:
        weight = layers[node]
        return same.get(weight, weight)

    def block(node: Node) -> Hashable:
        return blocks.get(node, node)

    def source(node: Node) -> Hashable:
        slots = [slot for slot in data_slots(node) if slot < len(node.inputs)]
        return (block(node), node.inputs[slots[0]]) if node in blocks and slots else node

    keys: list[Callable[[Node], Hashable]] = [lambda node: node, source, block]
    found: list[Group] = []
    for key in keys:
        found = _joined(order, (shared, key))
        if len(found) <= most:
            return found
    places = {node: number for number, group in enumerate(found) for node in group}
    tables = {places[node] for node in order if node.op == "Gather"}
    numbers = {number: i for i, number in enumerate(n for n in range(len(found)) if n not in tables)}
    count = -(-len(numbers) // max(most - len(tables), 1))
    return _joined(order, (shared, lambda node: numbers[n] // count if (n := places[node]) in numbers else -1 - n))


def _joined(order: Sequence[Node], keys: Iterable[Callable[[Node], Hashable]]) -> list[Group]:
    """Groups of nodes that are connected by an equal key, in order of their first node."""
    parent = {node: node for node in order}

    def first(node: Node) -> Node:
        while parent[node] is not node:
            parent[node] = node = parent[parent[node]]
        return node

    rank = {node: number for number, node in enumerate(order)}
    for key in keys:
        known: dict[Hashable, Node] = {}
        for node in order:
            one, other = first(known.setdefault(key(node), node)), first(node)
            early, late = sorted((one, other), key=rank.__getitem__)
            parent[late] = early
    groups: dict[Node, list[Node]] = {}
    for node in order:
        groups.setdefault(first(node), []).append(node)
    return [tuple(group) for group in groups.values()]


def _blocks(graph: Graph, layers: Mapping[Node, Constant]) -> list[tuple[int, Node]]:
    """(number of a residual block, layer in it) for the layers of one graph that are in one."""
    nodes = list(graph.nodes)
    adds = [n for n in nodes if n.op == "Add" and len(n.inputs) == 2 and not _any_constant(n)]
    bit_of = {id(t): 1 << i for i, t in enumerate({id(t): t for n in adds for t in n.inputs}.values())}
    own = [node for node in nodes if node in layers]
    unit_of = {node: 1 << i for i, node in enumerate(own)}
    # By tensor: which operands of such Adds, and which layers, it is computed from. Sets of them are bits of integers.
    operands: dict[int, int] = {}
    units: dict[int, int] = {}
    found: list[tuple[int, Node]] = []
    taken, tables = 0, sum(unit_of[node] for node in own if node.op == "Gather")
    for node in nodes:
        before, behind = 0, unit_of.get(node, 0)
        for tensor in node.inputs:
            before |= operands.get(id(tensor), 0)
            behind |= units.get(id(tensor), 0)
        for tensor in node.outputs:
            operands[id(tensor)] = before | bit_of.get(id(tensor), 0)
            units[id(tensor)] = behind
        if node.op != "Add" or len(node.inputs) != 2 or _any_constant(node):
            continue
        for one, other in (node.inputs, node.inputs[::-1]):
            if one is other or not operands.get(id(other), 0) & (bit_of[id(one)]):
                continue
            earlier = units.get(id(one), 0)
            inside = units.get(id(other), 0) & ~earlier
            # A mask is no residual stream, although later layers are computed from it.
            if inside & taken and not earlier & taken:
                continue
            inside &= ~(taken | tables)
            taken |= inside
            number = id(node)
            found += [(number, layer) for layer in own if unit_of[layer] & inside]
    return found


def _any_constant(node: Node) -> bool:
    return any(isinstance(tensor, Constant) for tensor in node.inputs)
