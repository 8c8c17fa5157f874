"""Which layout each tensor of a graph has, and which tensors are one but for their layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.layout_change import FIRST, LAST, RANKS, LayoutChange, transposed_label
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
class Labels:
    """Layouts as the graph has them: a union-find with parity, whose root 0 has the layout LAST."""

    parent: dict[int, tuple[int, int]] = field(default_factory=dict)  # id of a tensor -> another, and whether equal
    turns: dict[Node, LayoutChange] = field(default_factory=dict)
    moves: dict[Node, int] = field(default_factory=dict)  # Transposes that are part of the game -> what they give

    def find(self, key: int) -> tuple[int, int]:
        """The root of a tensor's tree, and whether its layout is the root's (0) or the other one (1)."""
        odd, path = 0, []
        while key in self.parent:
            path.append((key, odd))
            key, step = self.parent[key]
            odd ^= step
        for passed, before in path:
            self.parent[passed] = (key, odd ^ before)
        return key, odd

    def join(self, a: int, b: int, odd: int) -> bool:
        """Note that two tensors have the same layout, or not; False, and nothing noted, where the contrary is known."""
        (root, x), (other, y) = self.find(a), self.find(b)
        if root == other:
            return x ^ y == odd
        if root == 0:
            root, other = other, root
        self.parent[root] = (other, x ^ y ^ odd)
        return True

    def of(self, tensor: Tensor) -> int:
        """The layout of a tensor; relative to its neighbours where nothing says more."""
        return self.find(id(tensor))[1]

    def of_node(self, node: Node) -> int:
        """The layout that a node that can turn works in."""
        return self.of(self.turns[node].tied[0])


def labels_of(model: Model) -> Labels:
    """The layouts of all tensors, the nodes that can turn, and the Transposes that could go."""
    known = Labels()
    for node in model.graph.nodes:
        if node.op in _CHANNELS_FIRST and node.domain in STANDARD_DOMAINS:
            for tensor in (node.inputs[0], *node.outputs[:1]):
                if len(model.shape(tensor) or ()) in RANKS:
                    known.join(id(tensor), 0, FIRST)
    for node in model.graph.nodes:
        move = transposed_label(node)
        if move is None or len(model.shape(node.inputs[0]) or ()) != move[1] or linear_ops.fixed(node.inputs[0]):
            continue
        source, out = id(node.inputs[0]), id(node.outputs[0])
        label, rank = move
        if rank == 3:  # the same Transpose leads there and back
            agreed = known.join(source, out, 1)
        else:
            agreed = known.join(source, 0, 1 - label) and known.join(out, 0, label)
        if agreed:
            known.moves[node] = label
    norms = {part for node in model.graph.nodes if (norm := layer_norm(model, node)) is not None for part in norm.nodes}
    for node in model.graph.nodes:  # runtimes fuse a norm that is taken over the last axis
        if node not in known.moves and node.op not in _CHANNELS_FIRST and node not in norms:
            turn = change_of(model, node, 1 - _layout_of(known, node))
            if turn is not None and all(known.join(id(turn.tied[0]), id(t), 0) for t in turn.tied[1:]):
                known.turns[node] = turn
    for node in list(known.turns):  # what became known later
        turn = change_of(model, node, 1 - known.of_node(node))
        if turn is None or list(map(id, turn.tied)) != list(map(id, known.turns[node].tied)):
            del known.turns[node]
        else:
            known.turns[node] = turn
    return known


def _layout_of(known: Labels, node: Node) -> int:
    """The layout a node works in, by the first of its tensors of which it is known."""
    found = (known.find(id(t)) for t in (*node.inputs, *node.outputs) if t.name and not linear_ops.fixed(t))
    return next((label for root, label in found if root == 0), LAST)


# ---------------------------------------------------------------------- tensors that are the same but for their layout


@dataclass(frozen=True, slots=True)
class Group:
    """A tensor and what Transposes between the layouts make of it.

    Attributes:
        root: the tensor that another node makes, or an input of the graph.
        tensors: the root and what the Transposes give.
        moves: the Transposes.
        readers: nodes that read it, with the tensor of the group that each reads.
        promised: tensors of the group whose names stay: outputs of a graph.

    """

    root: Tensor
    tensors: tuple[Tensor, ...]
    moves: tuple[Node, ...]
    readers: tuple[tuple[Node, Tensor], ...]
    promised: tuple[Tensor, ...]

    def wants(self, known: Labels) -> Iterator[tuple[Node | None, int]]:
        """Who makes or reads it: a node that can turn, or None; and the layout it has it in as given."""
        maker = edit.producer(self.root)
        for node, tensor in ((maker, self.root), *self.readers, *((None, t) for t in self.promised)):
            turn = None if node is None else known.turns.get(node)
            tied = turn is not None and any(t is tensor for t in turn.tied)
            yield (node if tied else None), known.of(tensor)

    def doubled(self, known: Labels) -> bool:
        """True where more than one Transpose makes it, or one that nobody needs."""
        return len(self.moves) > len({label for _, label in self.wants(known)}) - 1


def parts_of(model: Model, known: Labels) -> Iterator[list[Group]]:
    """The groups of each part of the graph in which Transposes may be saved."""
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
            queue += [t for node in nodes for t in known.turns[node].tied]
        free = any(node is not None for group in part for node, _ in group.wants(known))
        if free or any(group.doubled(known) for group in part):
            yield part


def _group(model: Model, known: Labels, root: Tensor) -> Group:
    moves: list[Node] = []
    readers: list[tuple[Node, Tensor]] = []
    tensors = [root]
    for tensor in tensors:  # grows on the way
        for node in edit.consumers(tensor):
            if node in known.moves:
                moves.append(node)
                tensors.append(node.outputs[0])
            else:
                readers.append((node, tensor))
    promised = tuple(t for t in tensors if edit.is_output(model, t))
    return Group(root, tuple(tensors), tuple(moves), tuple(readers), promised)
