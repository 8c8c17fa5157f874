"""Group the quantized nodes of a plan by what they are for, so that a few measurements tell what int8 costs where.

The error of int8 adds up along a network, and the error of a tensor does not tell where it comes from. What a group
costs is therefore measured: with the group in float, and all others in int8. Groups are disjoint:

front end       what a Log, a phase or a magnitude near the inputs is computed from: small values count there as much as
                large ones
recurrent       LSTM, GRU and RNN
residual        the Adds of one residual stream, which carries the errors of all blocks before
squeeze-excite  the branches from a global mean to the factors of channels; they have few multiply-accumulates
stem            nodes with weights that no other node with a weight comes before
head            nodes with weights, up to an output, that no other node with a weight comes after
chain           consecutive nodes among the others
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.ops import op_of
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.plan import FLOAT, Plan

MOST_GROUPS = 12
_MOST_HEADS = 3
_FEWEST_ADDS = 3  # of a residual stream; fewer carry few errors
_FUSED = ("Relu", "Clip")  # in the kernel of the node before them, and so without a form of their own
_RECURRENT = ("LSTM", "GRU", "RNN")
_SMALL_COUNTS = ("Log", "Atan", "Sqrt")  # operators behind which small values matter as much as large ones
_MEANS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
_GATES = ("Sigmoid", "HardSigmoid", "Softmax", "Clip", "Relu")
_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Erf",
     "Softmax", "Softplus", "Mish", "Swish"}
)  # fmt: skip
_AS_THEY_ARE = ("Relu", "Clip", "LeakyRelu", "Dropout", "Cast")  # a residual stream goes on behind these


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """Quantized nodes that go to another form together.

    Attributes:
        kind: what they are for; see the module.
        nodes: labels of the nodes in graph order; never empty.
    """

    kind: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        if len(self.nodes) == 1:
            return f"{self.kind}: {self.nodes[0]}"
        return f"{self.kind} of {len(self.nodes)} nodes: {self.nodes[0]} to {self.nodes[-1]}"


def plan_groups(model: Model, plan: Plan, most: int = MOST_GROUPS, *, stored: bool = False) -> list[PlanGroup]:
    """Group the nodes that a plan quantizes.

    Args:
        model: the float model that the plan is for.
        plan: the plan.
        most: largest number of groups; at least one chain is made in any case.
        stored: group nodes too that compute in float with a weight stored in 8 bits.

    Returns:
        Disjoint groups in the order of their first nodes. Nodes that no pattern names alone are in none.
    """
    units = _units(model, plan, plan.stored if stored else ())
    known = _Known(model, units, {n.node for n in plan.nodes if n.has_weight})
    found: list[PlanGroup] = []
    left = dict.fromkeys(units)

    def take(kind: str, nodes: Iterable[Node]) -> None:
        chosen = {node.label for node in nodes}
        labels = tuple(label for label in left if label in chosen)
        if labels:
            found.append(PlanGroup(kind, labels))
            for label in labels:
                del left[label]

    take("front end", known.front_end())
    take("recurrent", (node for node in units.values() if node.op in _RECURRENT))
    for stream in known.residual_streams():
        take("residual", stream)
    take("squeeze-excite", known.squeeze_excite())
    take("stem", known.stem())
    for head in known.heads()[:_MOST_HEADS]:
        take("head", head)
    found += _chains([units[label] for label in left], known.weighted, max(most - len(found), 1))
    order = {label: number for number, label in enumerate(units)}
    return sorted(found, key=lambda group: order[group.nodes[0]])


def halves(group: PlanGroup) -> list[PlanGroup]:
    """Split a group in two of consecutive nodes; empty for a single node."""
    middle = len(group.nodes) // 2
    return [PlanGroup(group.kind, part) for part in (group.nodes[:middle], group.nodes[middle:])] if middle else []


def _units(model: Model, plan: Plan, stored: Collection[str]) -> dict[str, Node]:
    """The nodes with a precision of their own that a pattern can name, by label, in graph order."""
    node_of, named = {node.label: node for _, node in model.walk()}, exact_patterns(model)
    found = {}
    for planned in plan.nodes:
        node = node_of.get(planned.node)
        if node is None or (planned.how == FLOAT and planned.node not in stored) or planned.node not in named:
            continue
        if not (node.op in _FUSED or (op_of(node).keeps_range and not planned.has_weight)):
            found[planned.node] = node
    return found


def _chains(nodes: Sequence[Node], weighted: set[Node], count: int) -> list[PlanGroup]:
    """Consecutive nodes in at most `count` chains with about as many weighted nodes each."""
    total = sum(node in weighted for node in nodes) or len(nodes)
    count, found, seen = min(count, total), list[list[str]](), 0
    for node in nodes:
        number = seen * count // total if total else 0
        if len(found) <= number:
            found.append([])
        found[-1].append(node.label)
        seen += node in weighted or not weighted
    return [PlanGroup("chain", tuple(part)) for part in found if part]


class _Known:
    """What the graph tells of nodes. Sets of nodes are bits of integers, as `planning` sees thousands of nodes."""

    def __init__(self, model: Model, units: Mapping[str, Node], with_weight: set[str]) -> None:
        self._model, self._nodes = model, [node for node in model.graph.nodes]
        self._units = set(units.values())
        self.weighted = {node for label, node in units.items() if label in with_weight}
        self._bit = {node: 1 << i for i, node in enumerate(self._nodes)}
        self._all_weighted = self._bits(node for node in self._nodes if _has_weight(node))
        self._before: dict[Node, int] = {}
        for node in self._nodes:
            before = 0
            for tensor in node.inputs:
                for maker in tensor.inputs:
                    before |= self._before.get(maker, 0) | self._bit.get(maker, 0)
            self._before[node] = before

    def _bits(self, nodes: Iterable[Node]) -> int:
        found = 0
        for node in nodes:
            found |= self._bit.get(node, 0)
        return found

    def _of(self, bits: int) -> list[Node]:
        return [node for node in self._nodes if self._bit[node] & bits]

    def front_end(self) -> list[Node]:
        """What stands before a Log, phase or magnitude: linear parts of any size, or few of the weighted nodes."""
        found, activations = 0, self._bits(node for node in self._nodes if node.op in _ACTIVATIONS)
        for node in self._nodes:
            if node.op not in _SMALL_COUNTS or (node.op == "Sqrt" and self._of_variance(node)):
                continue
            before = (self._before[node] & self._all_weighted).bit_count()
            linear = not self._before[node] & activations
            if before and (linear or before <= self._all_weighted.bit_count() // 2):
                found |= self._before[node] | self._bit[node]
        return self._of(found)

    def _of_variance(self, node: Node) -> bool:
        """Whether a square root is that of a mean or a sum, as in a normalization."""
        maker = edit.producer(node.inputs[0])
        for _ in range(3):
            if maker is None or maker.op in _MEANS:
                return maker is not None
            maker = next((m for t in maker.inputs for m in t.inputs), None)
        return False

    def residual_streams(self) -> list[list[Node]]:
        """The Adds of two computed tensors, by stream: each reads what the one before it made, unchanged but moved."""
        stream: dict[Node, int] = {}
        members: dict[int, list[Node]] = {}
        for node in self._nodes:
            if node.op not in ("Add", "Sum") or any(isinstance(t, Constant) for t in node.inputs):
                continue
            before = {stream[add] for t in node.inputs if (add := _add_before(t)) in stream}
            number = min(before, default=len(stream))
            for other in before - {number}:
                for add in members.pop(other):
                    stream[add] = number
                    members[number].append(add)
            stream[node] = number
            members.setdefault(number, []).append(node)
        found = [[node for node in adds if node in self._units] for adds in members.values()]
        return [adds for adds in found if len(adds) >= _FEWEST_ADDS]

    def squeeze_excite(self) -> list[Node]:
        """What lies between a global mean and the gate of a product that scales the mean's own input."""
        found = 0
        for node in self._nodes:
            if node.op != "Mul" or any(isinstance(t, Constant) for t in node.inputs):
                continue
            for gate, scaled in (node.inputs, node.inputs[::-1]):
                end = edit.producer(gate)
                if end is not None and end.op in _GATES and (mean := self._mean_before(end, scaled)) is not None:
                    found |= (self._before[end] | self._bit[end]) & ~self._before[mean] & ~self._bit[mean]
        return self._of(found)

    def _mean_before(self, gate: Node, scaled: Tensor) -> Node | None:
        """The global mean that a short branch to a gate begins with, of the tensor that the gate scales."""
        maker: Node | None = gate
        for _ in range(8):
            if maker is None or maker.op in _MEANS:
                break
            maker = next((m for t in maker.inputs for m in t.inputs), None)
        return maker if maker is not None and maker.op in _MEANS and scaled in maker.inputs else None

    def stem(self) -> list[Node]:
        """Weighted nodes without a weighted node before them."""
        return [node for node in self._nodes if node in self.weighted and not self._before[node] & self._all_weighted]

    def heads(self) -> list[list[Node]]:
        """Weighted nodes without a weighted node behind them, by the output that they lead to."""
        inner = 0
        for node in self._nodes:
            if _has_weight(node):
                inner |= self._before[node]
        last = self._all_weighted & ~inner
        found, taken = [], 0
        for output in self._model.graph.outputs:
            maker = edit.producer(output)
            bits = 0 if maker is None else (self._before[maker] | self._bit[maker]) & last & ~taken
            taken |= bits
            if bits:
                found.append([node for node in self._of(bits) if node in self._units])
        return [head for head in found if head]


def _has_weight(node: Node) -> bool:
    return bool(op_of(node).weights) and any(isinstance(t, Constant) for t in node.inputs[1:2])


def _add_before(tensor: Tensor) -> Node | None:
    """The Add whose values a tensor holds: only nodes that move them, and activations, lie between."""
    maker = edit.producer(tensor)
    while maker is not None and maker.op not in ("Add", "Sum"):
        if not (op_of(maker).keeps_range or maker.op in _AS_THEY_ARE) or not maker.inputs:
            return None
        maker = edit.producer(maker.inputs[0])
    return maker
