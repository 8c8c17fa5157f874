"""Find the layout of each tensor of a graph, and group the tensors that differ in nothing but their layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.layout_change import FIRST, LAST, RANKS, LayoutChange, transposed_layout
from onnxshot.passes.layout_ops import change_of
from onnxshot.passes.runtime_fusions import layer_norm

_CHANNELS_FIRST = frozenset(
    {
        "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool",
        "GlobalLpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace",
        "SpaceToDepth",
    }
)  # fmt: skip


@dataclass(slots=True)
class Layouts:
    """The layouts of the given graph: a union-find with parity over tensors, in which the key 0 has the layout LAST.

    Attributes:
        parent: `id` of a tensor -> (another key, 0 if both have the same layout or 1 if not).
        changes: Each node that can be converted -> how.
        moves: Each Transpose between the layouts that may be removed -> the layout of its output.
    """

    parent: dict[int, tuple[int, int]] = field(default_factory=dict)
    changes: dict[Node, LayoutChange] = field(default_factory=dict)
    moves: dict[Node, int] = field(default_factory=dict)

    def find(self, key: int) -> tuple[int, int]:
        """(root of the tensor's tree, 0 if the tensor has the root's layout or 1 if not)."""
        odd, path = 0, []
        while key in self.parent:
            path.append((key, odd))
            key, step = self.parent[key]
            odd ^= step
        for passed, before in path:
            self.parent[passed] = (key, odd ^ before)
        return key, odd

    def join(self, a: int, b: int, odd: int) -> bool:
        """Record that two tensors have the same layout (odd = 0) or not (1). False if the contrary is known already."""
        (root, x), (other, y) = self.find(a), self.find(b)
        if root == other:
            return x ^ y == odd
        if root == 0:
            root, other = other, root
        self.parent[root] = (other, x ^ y ^ odd)
        return True

    def of(self, tensor: Tensor) -> int:
        """The layout of a tensor; only relative to its neighbours if nothing determines it."""
        return self.find(id(tensor))[1]

    def of_node(self, node: Node) -> int:
        """The layout of a node that can be converted."""
        return self.of(self.changes[node].tensors[0])


def layouts_of(model: Model) -> Layouts:
    """The layouts of all tensors, the nodes that can be converted, and the Transposes that may be removed."""
    known = Layouts()
    for node in model.graph.nodes:
        if node.op in _CHANNELS_FIRST and node.domain in STANDARD_DOMAINS:
            for tensor in (node.inputs[0], *node.outputs[:1]):
                if len(model.shape(tensor) or ()) in RANKS:
                    known.join(id(tensor), 0, FIRST)
    for node in model.graph.nodes:
        move = transposed_layout(node)
        if move is None or len(model.shape(node.inputs[0]) or ()) != move[1] or linear_ops.fixed(node.inputs[0]):
            continue
        source, out = id(node.inputs[0]), id(node.outputs[0])
        layout, rank = move
        if rank == 3:  # the same Transpose converts both ways, so it does not tell which layout is which
            agreed = known.join(source, out, 1)
        else:
            agreed = known.join(source, 0, 1 - layout) and known.join(out, 0, layout)
        if agreed:
            known.moves[node] = layout
    norms = {part for node in model.graph.nodes if (norm := layer_norm(model, node)) is not None for part in norm.nodes}
    for node in model.graph.nodes:  # decomposed norms stay on the last axis, where runtimes fuse them
        if node not in known.moves and node.op not in _CHANNELS_FIRST and node not in norms:
            change = change_of(model, node, 1 - _layout_of(known, node))
            if change is not None and all(known.join(id(change.tensors[0]), id(t), 0) for t in change.tensors[1:]):
                known.changes[node] = change
    for node in list(known.changes):  # again, with the layouts that became known meanwhile
        change = change_of(model, node, 1 - known.of_node(node))
        if change is None or list(map(id, change.tensors)) != list(map(id, known.changes[node].tensors)):
            del known.changes[node]
        else:
            known.changes[node] = change
    return known


def _layout_of(known: Layouts, node: Node) -> int:
    """The layout of the first of a node's tensors whose layout is determined; LAST if there is none."""
    found = (known.find(id(t)) for t in (*node.inputs, *node.outputs) if t.name and not linear_ops.fixed(t))
    return next((layout for root, layout in found if root == 0), LAST)


# ---------------------------------------------------------------------- groups of tensors that differ in layout only


@dataclass(frozen=True, slots=True)
class Group:
    """A tensor and its transposed versions.

    Attributes:
        root: The tensor that is an input of the graph or made by a node other than these Transposes.
        tensors: The root and the outputs of the Transposes.
        moves: The Transposes between the layouts.
        readers: The nodes that read a tensor of the group, each with that tensor.
        promised: The tensors of the group that are outputs of a graph, whose names stay.
    """

    root: Tensor
    tensors: tuple[Tensor, ...]
    moves: tuple[Node, ...]
    readers: tuple[tuple[Node, Tensor], ...]
    promised: tuple[Tensor, ...]

    def wants(self, known: Layouts) -> Iterator[tuple[Node | None, int]]:
        """(node, layout) of its maker, its readers and graph outputs; the node is None if it cannot be converted."""
        maker = edit.producer(self.root)
        for node, tensor in ((maker, self.root), *self.readers, *((None, t) for t in self.promised)):
            change = None if node is None else known.changes.get(node)
            convertible = change is not None and any(t is tensor for t in change.tensors)
            yield (node if convertible else None), known.of(tensor)

    def doubled(self, known: Layouts) -> bool:
        """Whether it has more Transposes than its maker and readers need."""
        return len(self.moves) > len({layout for _, layout in self.wants(known)}) - 1


def parts_of(model: Model, known: Layouts) -> Iterator[list[Group]]:
    """The groups of each connected part of the graph in which Transposes may be saved."""
    seen: set[int] = set()
    for move in known.moves:
        queue, part = [move.inputs[0]], []
        while queue:
            root = queue.pop()
            while (maker := edit.producer(root)) is not None and maker in known.moves:
                root = maker.inputs[0]
            if id(root) in seen:
                continue
            seen.add(id(root))
            part.append(_group(model, known, root))
            nodes = dict.fromkeys(node for node, _ in part[-1].wants(known) if node is not None)
            queue += [t for node in nodes for t in known.changes[node].tensors]
        free = any(node is not None for group in part for node, _ in group.wants(known))
        if free or any(group.doubled(known) for group in part):
            yield part


def _group(model: Model, known: Layouts, root: Tensor) -> Group:
    """The group of a tensor that no Transpose between the layouts makes."""
    moves: list[Node] = []
    readers: list[tuple[Node, Tensor]] = []
    tensors = [root]
    for tensor in tensors:  # the list grows while it is iterated
        for node in edit.consumers(tensor):
            if node in known.moves:
                moves.append(node)
                tensors.append(node.outputs[0])
            else:
                readers.append((node, tensor))
    promised = tuple(t for t in tensors if edit.is_output(model, t))
    return Group(root, tuple(tensors), tuple(moves), tuple(readers), promised)
