"""Queries and edits of a graph: producers and consumers, new nodes and constants, removal, topological order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.graph import weights
from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model


def producer(tensor: Tensor) -> Node | None:
    """Return the node that computes the tensor; None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Tensor) -> list[Node]:
    """Return the nodes that read the tensor, subgraphs included, each once."""
    return list(dict.fromkeys(tensor.outputs))


def is_output(model: Model, tensor: Tensor) -> bool:
    """Return whether the tensor is an output of the graph or of a subgraph."""
    if not any(tensor is out for graph in model.known_graphs for out in graph.outputs):
        return False  # the usual case, decided without a walk over all nodes
    return any(tensor is out for graph in model.graphs() for out in graph.outputs)


def only_consumer(model: Model, tensor: Tensor) -> Node | None:
    """Return the node that reads the tensor, where it is the only reader and no graph has the tensor as an output."""
    users = consumers(tensor)
    return users[0] if len(users) == 1 and not is_output(model, tensor) else None


def constant_input(node: Node, index: int) -> NDArray[Any] | None:
    """Return the values of an input that is a constant; None where it is absent or computed."""
    if index >= len(node.inputs) or not isinstance(node.inputs[index], Constant):
        return None
    return weights.read(node.inputs[index])


def clip_limits(node: Node) -> tuple[float, float]:
    """Return the limits of a Clip: infinite where there is none, NaN where it is computed or not a single value."""
    if "min" in node.attrs or "max" in node.attrs:  # Clip-6
        return float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
    low, high = (_limit(node, slot, default) for slot, default in ((1, -np.inf), (2, np.inf)))
    return low, high


def _limit(node: Node, slot: int, default: float) -> float:
    if slot >= len(node.inputs) or not node.inputs[slot].name:
        return default
    value = constant_input(node, slot)
    return float(value.reshape(())) if value is not None and value.size == 1 else float("nan")


def add_constant(model: Model, base: str, suffix: str, values: NDArray[Any] | weights.ComputedValues) -> Constant:
    """Make a constant with a new name, `base` and `suffix` joined."""
    if isinstance(values, np.ndarray | np.generic):
        values = np.asarray(values)
    return Constant(model.fresh(base, suffix), values)


def add_node(
    model: Model,
    op: str,
    inputs: Sequence[Tensor],
    *,
    base: str,
    suffix: str = "",
    outputs: Sequence[Tensor] | int = 1,
    attrs: dict[str, Any] | None = None,
    domain: str | None = None,
    graph: Graph | None = None,
) -> Node:
    """Append a node with new names to a graph; `toposort` moves it to its place.

    Args:
        model: the model.
        op: operator type.
        inputs: input tensors.
        base: name that the new names begin with, most often the label of a node.
        suffix: second part of the new names; the operator if empty.
        outputs: output tensors, or how many new ones to make. A single new output gets the name of the node, which
            keeps small files small.
        attrs: attributes.
        domain: operator domain; None for the default.
        graph: the graph to append to; None for the top-level one.

    Returns:
        The new node.
    """
    name = model.fresh(base, suffix or op)
    if isinstance(outputs, int) and outputs == 1:
        outputs = [Variable(name)]
    elif isinstance(outputs, int):
        outputs = [Variable(model.fresh(base, f"{suffix or op}_output")) for _ in range(outputs)]
    node = Node(op, name, dict(attrs or {}), list(inputs), list(outputs), domain)
    (graph or model.graph).nodes.append(node)
    return node


def replace_uses(model: Model, old: Tensor, new: Tensor, *, keep: Sequence[Node] = ()) -> None:
    """Let every reader of `old` read `new` instead, graph outputs included; nodes in `keep` still read `old`."""
    for node, times in Counter(old.outputs).items():
        at = -1
        for _ in range(0 if node in keep else times):
            at = node.inputs.index(old, at + 1)
            node.inputs[at] = new
    for graph in model.known_graphs:
        for i, out in enumerate(graph.outputs):
            if out is old:
                graph.outputs[i] = new


def bypass(model: Model, node: Node, source: Tensor) -> bool:
    """Remove a node whose first output equals `source`, and let its readers read `source`.

    The names of graph outputs do not change.

    Returns:
        False, without a change, where the names of both `source` and the output must be kept.
    """
    out = node.outputs[0]
    if is_output(model, out):
        maker = producer(source)
        if maker is None or is_output(model, source) or maker not in graph_of(model, node).nodes:
            return False
        # Callers rely on the name of a graph output, so its tensor stays and the producer of `source` computes it.
        node.inputs.clear()
        node.outputs.clear()
        replace_uses(model, source, out)
        maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is source)] = out
    else:
        replace_uses(model, out, source)
    remove(model, [node])
    return True


def absorb(model: Model, maker: Node, node: Node) -> None:
    """Merge `node` into `maker`, whose first output only `node` reads: `maker` now computes the output of `node`.

    The output keeps its name, and the tensor between the two nodes disappears: no name changes its values. The model
    records the removed name in `renamed`, so that a name pattern of the user still finds the layer.
    """
    between, out = maker.outputs[0].name, node.outputs[0]
    model.renamed.follow([between], out.name)
    remove(model, [node])
    maker.outputs[0] = out


def rename(model: Model, node: Node, suffix: str) -> None:
    """Give the first output of a node a new name, because its values have changed."""
    old = node.outputs[0]
    new = Variable(model.fresh(old.name, suffix), dtype=old.dtype, shape=old.shape)
    replace_uses(model, old, new)
    node.outputs[0] = new


def graph_of(model: Model, node: Node) -> Graph:
    """Return the graph or subgraph that holds the node."""
    return next(graph for graph in model.known_graphs if node in graph.nodes)


def remove(model: Model, nodes: Sequence[Node]) -> None:
    """Remove nodes from their graphs, and disconnect them and the nodes of their subgraphs from all tensors."""
    gone = dict.fromkeys(nodes)
    for graph in model.known_graphs:
        if len(gone) > 1:
            graph.nodes[:] = [n for n in graph.nodes if n not in gone]
        elif nodes and nodes[0] in graph.nodes:
            graph.nodes.remove(nodes[0])  # passes mostly remove one node: much faster than a new list
            break
    for node in gone:
        _cut(node)
        node.outputs.clear()


def _cut(node: Node) -> None:
    for inner in (node, *_inner_nodes(node)):
        inner.inputs.clear()  # a removed subgraph no longer reads its tensors


def remove_unused(model: Model) -> int:
    """Remove nodes that no output depends on, in subgraphs too, and return how many. Graph inputs are kept."""
    given = Counter(id(out) for graph in model.graphs() for out in graph.outputs)

    def unused(node: Node) -> bool:
        return bool(node.outputs) and not any(given[id(t)] or t.outputs for t in node.outputs)

    dead: dict[Node, None] = {}
    queue = deque(node for _, node in model.walk() if unused(node))
    while queue:
        node = queue.popleft()
        if node in dead:
            continue
        dead[node] = None
        inside = set(_inner_nodes(node))
        read = [t for n in (node, *inside) for t in n.inputs]
        for graph in _subgraphs(node):
            given.subtract(map(id, graph.outputs))
            read += graph.outputs
        _cut(node)
        makers = [m for m in map(producer, read) if m is not None]
        queue.extend(m for m in makers if m not in inside and m not in dead and unused(m))
    remove(model, list(dead))
    return len(dead)


def _subgraphs(node: Node) -> list[Graph]:
    """All subgraphs of a node, at any depth."""
    found = [v for v in node.attrs.values() if isinstance(v, Graph)]
    for graph in found:  # the list grows during the loop
        found.extend(v for inner in graph.nodes for v in inner.attrs.values() if isinstance(v, Graph))
    return found


def _inner_nodes(node: Node) -> list[Node]:
    return [inner for graph in _subgraphs(node) for inner in graph.nodes]


def toposort(model: Model) -> None:
    """Sort the nodes of every graph topologically; nodes already in order keep their places.

    Raises:
        ModelError: a graph has a cycle.
    """
    for graph in model.graphs():
        graph.nodes[:] = _sorted(graph)


def _sorted(graph: Graph) -> list[Node]:
    """Depth-first topological order: a sorted graph is unchanged, and a new node moves before its first reader."""
    made_by = {id(t): n for n in graph.nodes for t in n.outputs if t.name}
    needs: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        read = [*node.inputs, *(t for inner in _inner_nodes(node) for t in inner.inputs)]
        read += [t for inner in _subgraphs(node) for t in inner.outputs]
        needs[node] = [made_by[id(t)] for t in read if id(t) in made_by]
    order: dict[Node, None] = {}
    for start in graph.nodes:
        stack, open_nodes = [start], set()
        while stack:
            node = stack[-1]
            if node in order:
                stack.pop()
                continue
            missing = [n for n in needs[node] if n not in order]
            if not missing:
                order[node] = None
                open_nodes.discard(node)
                stack.pop()
            elif node in open_nodes:
                raise ModelError(f"the graph has a cycle through {node.label!r}")
            else:
                open_nodes.add(node)
                stack.extend(reversed(missing))
    return list(order)
