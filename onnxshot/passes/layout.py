"""Choose NCHW or NHWC for each operator so that Transposes move the fewest values: NHWC exports become NCHW graphs.

Keras and TensorFlow compute with channels last, and ONNX's Conv with channels first, so their exporters put a Transpose
on both sides of each Conv. The operators between can be written in either layout (`layout_ops`). The choice is a
minimum cut: a tensor whose maker and readers differ in layout costs one Transpose of its size. The given layouts are
one of the candidates, so Transposes never move more values than before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.macs import concrete_shapes
from onnxshot.maths.min_cut import MinimumCut
from onnxshot.passes import linear_ops
from onnxshot.passes.base import Change
from onnxshot.passes.fold_affine import affine_of
from onnxshot.passes.layout_change import FIRST, LAST, perm_to, transposed_layout
from onnxshot.passes.layout_groups import Group, Layouts, layouts_of, parts_of

_UNIT = 1 << 24  # cost of moving one value; smaller costs only break ties
_WITH_MAKER, _WITH_READER, _AS_GIVEN = 16, 8, 1
_FREE_SIZE = 256  # assumed size of dynamic dimensions besides the batch: divisible by the strides of usual networks
_FORBIDDEN = 1 << 90
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "PRelu"}
)


@dataclass(frozen=True, slots=True)
class FewestTransposes:
    """Convert operators to the other layout if that saves Transposes, or lets a BatchNormalization follow its Conv.

    Only the top-level graph is rewritten.

    Edits count the converted nodes plus the Transposes saved. Nothing is reported as skipped.
    """

    name: str = "fewest_transposes"

    def run(self, model: Model) -> Change:
        """Convert the operators."""
        change = Change()
        if not any(transposed_layout(node) for node in model.graph.nodes):
            return change
        known = layouts_of(model)
        groups = [group for part in parts_of(model, known) for group in part]
        if not groups:
            return change
        chosen = _solve(model, known, groups)
        turned = [node for node, layout in chosen.items() if layout != known.of_node(node)]
        before = sum(node.op == "Transpose" for node in model.graph.nodes)
        if turned or any(group.doubled(known) for group in groups):
            _write(model, known, groups, chosen)
            after = sum(node.op == "Transpose" for node in model.graph.nodes)
            change.edits = len(turned) + max(0, before - after)
        return change


# ---------------------------------------------------------------------- the cheapest layouts


def _solve(model: Model, known: Layouts, groups: list[Group]) -> dict[Node, int]:
    """The layout of each convertible node that moves the fewest values; ties keep norms next to their Convs."""
    sizes = _Sizes(model)
    cheapest = MinimumCut()
    bonus = _bonuses(known, groups)
    nodes: dict[Node, None] = {}
    for group in groups:
        wants = list(group.wants(known))
        nodes |= dict.fromkeys(node for node, _ in wants if node is not None)
        size, split = sizes.of(group.root), len({layout for _, layout in wants}) > 1
        cost = (_UNIT if split else _FORBIDDEN) if size is None else size * _UNIT
        members = {layout if node is None else node for node, layout in wants}
        cheapest.add_split_cost(members, cost + bonus[id(group.root)])
    cheapest.fix_label(LAST, LAST)
    cheapest.fix_label(FIRST, FIRST)
    for node in nodes:
        change, given = known.changes[node], known.of_node(node)
        cheapest.add_label_cost(node, 1 - given, _FORBIDDEN if change.needs_first and given == FIRST else _AS_GIVEN)
        if change.scan_cost:
            cost = 2 * _UNIT * (sizes.of(change.tensors[0]) or 1)
            cheapest.add_label_cost(node, 1 - given if change.scan_cost > 0 else given, cost)
    solved = cheapest.solve()
    return {node: solved[node] for node in nodes}


class _Sizes:
    """Number of values of tensors; a dynamic batch counts as 1, other dynamic dimensions as `_FREE_SIZE`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.concrete: dict[str, tuple[int, ...]] | None = None

    def of(self, tensor: Tensor) -> int | None:
        """The number of values; None if it cannot be inferred."""
        stated = self.model.shape(tensor)
        if stated is None or any(not isinstance(d, int) for d in stated):
            stated = self._found().get(tensor.name)
        return None if stated is None else math.prod(d for d in stated if isinstance(d, int))

    def _found(self) -> dict[str, tuple[int, ...]]:
        """Concrete shapes by tensor name, inferred once."""
        if self.concrete is None:
            shapes = {t.name: self.model.shape(t) for t in self.model.graph.inputs}
            fed = {
                name: tuple(d if isinstance(d, int) else (_FREE_SIZE if i else 1) for i, d in enumerate(shape))
                for name, shape in shapes.items()
                if shape is not None
            }
            self.concrete = concrete_shapes(self.model, fed)
        return self.concrete


def _bonuses(known: Layouts, groups: list[Group]) -> dict[int, int]:
    """Small costs, by `id` of a group's root, that break ties: no Transpose comes between a linear op and its fold."""
    by_tensor = {id(t): group for group in groups for t in group.tensors}
    behind: dict[int, bool] = {}
    before: dict[int, bool] = {}

    def data(node: Node) -> Group | None:
        """The group of the node's first input that belongs to one."""
        return next((by_tensor[id(t)] for t in node.inputs if id(t) in by_tensor), None)

    def follows(group: Group | None) -> bool:
        """Whether a linear op makes the group's tensor, directly or through nodes that fold into that op."""
        passed: list[int] = []
        found = False
        while group is not None and id(group.root) not in behind:
            passed.append(id(group.root))
            behind[passed[-1]] = False
            maker = edit.producer(group.root)
            found = linear_ops.is_linear(maker)
            group = data(maker) if maker is not None and not found and _folds(known, maker) else None
        found = found or (group is not None and behind[id(group.root)])
        behind.update(dict.fromkeys(passed, found))
        return found

    def leads(group: Group | None) -> bool:
        """Whether a Conv reads the group's tensor, directly or through nodes that fold into that Conv."""
        passed: list[int] = []
        found = False
        while group is not None and id(group.root) not in before:
            passed.append(id(group.root))
            before[passed[-1]] = False
            users = [node for node, _ in group.readers]
            found = any(user.op == "Conv" for user in users)
            only = users[0] if len(users) == 1 and not group.promised and _folds(known, users[0]) else None
            group = None if found or only is None else by_tensor.get(id(only.outputs[0]))
        found = found or (group is not None and before[id(group.root)])
        before.update(dict.fromkeys(passed, found))
        return found

    result = {}
    for group in groups:
        maker = edit.producer(group.root)
        with_maker = any(_folds(known, node) for node, _ in group.readers) and follows(group)
        with_reader = maker is not None and _folds(known, maker) and leads(group)
        result[id(group.root)] = with_maker * _WITH_MAKER + with_reader * _WITH_READER
    return result


def _folds(known: Layouts, node: Node) -> bool:
    """Whether the node is convertible and can fold into a linear op: an activation or an affine op."""
    return node in known.changes and (node.op in _ACTIVATIONS or affine_of(node) is not None)


# ---------------------------------------------------------------------- edits


def _write(model: Model, known: Layouts, groups: list[Group], chosen: dict[Node, int]) -> None:
    """Convert the nodes to their chosen layouts, and put Transposes where layouts still differ."""
    given = [known.of_node(node) for node in chosen]
    plans = []
    for group in groups:
        wants = list(group.wants(known))
        if group.doubled(known) or any(node is not None and chosen[node] != layout for node, layout in wants):
            have = [layout if node is None else chosen[node] for node, layout in wants]
            plans.append((_Versions(model, known, group, have[0]), _slots(group), have[1:]))
    for (node, layout), was in zip(chosen.items(), given, strict=True):
        if layout != was:
            known.changes[node].write(model, layout)
    edit.remove(model, [move for versions, _, _ in plans for move in versions.group.moves])
    for versions, slots, layouts in plans:
        versions.make()
        for places, layout in zip(slots, layouts, strict=False):  # `layouts` ends with those of the graph outputs
            for node, slot in places:
                node.inputs[slot] = versions.get(layout)
        versions.give_out()
    edit.toposort(model)


def _slots(group: Group) -> list[list[tuple[Node, int]]]:
    """For each reader of the group, the (node, input slot) pairs that read its tensor."""
    return [[(node, slot) for slot, t in enumerate(node.inputs) if t is tensor] for node, tensor in group.readers]


class _Versions:
    """The tensors of a group in one layout or both; a name is kept for the layout that it had."""

    def __init__(self, model: Model, known: Layouts, group: Group, made: int) -> None:
        self.model, self.group, self.made = model, group, made
        self.rank = len(model.shape(group.root) or ())
        self.layouts = {id(t): known.of(t) for t in group.tensors}
        self.maker = edit.producer(group.root)
        outputs = [] if self.maker is None else self.maker.outputs
        self.place = next((i for i, t in enumerate(outputs) if t is group.root), 0)
        self.base = group.moves[0].label if group.moves else group.root.name
        self.found: dict[int, Tensor] = {}

    def make(self) -> None:
        """Let the maker make the tensor in its chosen layout."""
        if self.maker is None:
            self.found[self.made] = self.group.root
            return
        self.found[self.made] = now = self._named(self.made)
        self.maker.outputs[self.place] = now
        gone = {t.name for t in self.group.tensors if self.layouts[id(t)] != self.made and t not in self.group.promised}
        self.model.renamed.follow(sorted(gone), now.name)

    def get(self, layout: int) -> Tensor:
        """The tensor in this layout; adds a Transpose when it is first needed."""
        if layout not in self.found:
            self.found[layout] = self._named(layout)
            edit.add_node(
                self.model, "Transpose", [self.found[self.made]], base=self.base, suffix="turned",
                outputs=[self.found[layout]], attrs={"perm": perm_to(layout, self.rank)},
            )  # fmt: skip
        return self.found[layout]

    def give_out(self) -> None:
        """Make the graph's outputs under their own names."""
        for tensor in self.group.promised:
            same = self.get(self.layouts[id(tensor)])
            if same is not tensor:
                edit.add_node(self.model, "Identity", [same], base=tensor.name, suffix="same", outputs=[tensor])

    def _named(self, layout: int) -> Tensor:
        """The tensor that had this layout, preferably an output of the graph; a new one if there is none."""
        root = self.group.root
        same = [t for t in self.group.tensors if self.layouts[id(t)] == layout and (t is not root or self.maker)]
        kept = [t for t in same if any(t is p for p in self.group.promised)]
        if kept or same:
            return (kept or same)[0]
        suffix = "first" if layout == FIRST else "last"
        return type(root)(self.model.fresh(root.name, suffix), dtype=root.dtype)
