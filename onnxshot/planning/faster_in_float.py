"""Find the quantized nodes that would be faster in float, from the times of the kernels of both models.

ONNX Runtime merges nodes, in float others than in int8: nodes that either of the two merges stay together, as a part.
Each part is computed as planned or in float, at the time that its kernels took. Where a part as planned meets one in
float, a tensor is quantized or dequantized. The cheapest choice for all parts together is a minimum cut.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.maths.min_cut import MinimumCut
from onnxshot.planning.plan import DYNAMIC, STATIC, Plan
from onnxshot.runtimes.ort_border_times import Border
from onnxshot.runtimes.ort_kernels import Kernel

_BORDERS = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose")
_RENAMED = re.compile(r"_nchwc$|_token_\d+$|_integer$|_quant$")
"""Suffix that ONNX Runtime adds for another layout, to the output of a float Conv or to the name of an int8 node."""
_FUSED = ("Relu", "Clip")
_PICTURE = 4  # dimensions [N, C, H, W]
_PLANNED, _FLOAT = 0, 1  # labels of the cut


@dataclass(frozen=True, slots=True)
class Placement:
    """What the kernel times say of a plan.

    Attributes:
        floats: labels of the quantized nodes that are faster in float, in graph order.
        planned: microseconds of the kernels of the model as planned.
        placed: microseconds with those nodes in float, as predicted.
        all_float: microseconds of the kernels of the float model.
        saved: label of each quantized node -> microseconds that int8 saves there; negative where float is faster.
    """

    floats: tuple[str, ...]
    planned: float
    placed: float
    all_float: float
    saved: Mapping[str, float] = field(default_factory=dict)


def faster_in_float(
    model: Model,
    plan: Plan,
    in_float: Sequence[Kernel],
    quantized: Sequence[Kernel],
    border: Border,
    forced: Collection[str],
) -> Placement:
    """Find the quantized nodes that would be faster in float.

    Args:
        model: the float model.
        plan: its plan.
        in_float: the kernels of the float model.
        quantized: the kernels of the model as planned.
        border: how long a change between float and int8 takes.
        forced: labels of the nodes that stay as planned.
    """
    return _Parts(model, plan, border).placed(in_float, quantized, forced)


@dataclass(slots=True)
class _Times:
    """Microseconds by node that stands for its part, and of borders by tensor."""

    of_nodes: dict[Node, float] = field(default_factory=lambda: defaultdict(float))
    of_borders: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class _Parts:
    """The nodes of a float model, of which those that are merged are joined to parts."""

    def __init__(self, model: Model, plan: Plan, border: Border) -> None:
        self._plan, self._border = plan, border
        self._nodes = list(model.graph.nodes)
        self._by_name = {node.name: node for node in self._nodes if node.name}
        self._tensors: dict[str, Tensor] = {t.name: t for t in model.graph.inputs}
        self._tensors |= {t.name: t for node in self._nodes for t in node.outputs if t.name}
        self._how = {row.node: row.how for row in plan.nodes}
        self._parent: dict[Node, Node] = {node: node for node in self._nodes}
        self._elements: dict[str, tuple[int, int]] = {}  # tensor -> values, and dimensions

    def placed(self, in_float: Sequence[Kernel], quantized: Sequence[Kernel], forced: Collection[str]) -> Placement:
        """The cheapest choice; the arguments are those of `faster_in_float`."""
        as_float, as_planned = self._read(in_float), self._read(quantized)
        planned = defaultdict[Node, list[Node]](list)  # part -> its quantized nodes
        for node in self._nodes:
            if self._how.get(node.label) in (STATIC, DYNAMIC):
                planned[self._first(node)].append(node)
        cost, problem = defaultdict[tuple[Node, int], float](float), MinimumCut()
        for node, taken in as_planned.of_nodes.items():
            cost[self._first(node), _PLANNED] += taken
        for node, taken in as_float.of_nodes.items():
            cost[self._first(node), _FLOAT] += taken
        for name, taken in as_float.of_borders.items():
            beside = [edit.producer(self._tensors[name]), *edit.consumers(self._tensors[name])]
            for node in [node for node in beside if node is not None and node in self._parent][:1]:
                cost[self._first(node), _FLOAT] += taken
        splits = list(self._splits(as_planned, cost))
        problem.fix_label(None, _FLOAT)
        for part, nodes in planned.items():
            for label in (_PLANNED, _FLOAT):
                problem.add_label_cost(part, label, _whole(cost[part, label]))
            if any(node.label in forced for node in nodes):
                problem.fix_label(part, _PLANNED)
        for parts, taken in splits:
            problem.add_split_cost([part if part in planned else None for part in parts], _whole(taken))
        labels = problem.solve()
        kept = [part for part in planned if labels[part] == _PLANNED]
        floats = {node for part, nodes in planned.items() if labels[part] == _FLOAT for node in nodes}
        placed = sum(cost[part, labels[part]] for part in planned)
        placed += sum(taken for parts, taken in splits if len({part in kept for part in parts}) > 1)
        every, total = sum(cost[part, _PLANNED] for part in planned), self._taken(quantized)
        # Splits that all parts as planned pay: tensors that no int8 node makes.
        every += sum(taken for parts, taken in splits if len({part in planned for part in parts}) > 1)
        saved = {
            node.label: (cost[part, _FLOAT] - cost[part, _PLANNED]) / len(nodes)
            for part, nodes in planned.items()
            for node in nodes
        }
        return Placement(
            tuple(node.label for node in self._nodes if node in floats), total, total - every + placed,
            self._taken(in_float), saved,
        )  # fmt: skip

    def _splits(
        self, as_planned: _Times, cost: dict[tuple[Node, int], float]
    ) -> Iterator[tuple[tuple[Node | None, ...], float]]:
        """Parts, None for what is float anyway, and the microseconds that are paid where not all of them are alike.

        Borders that one part causes alone are added to `cost`.
        """
        for name in dict.fromkeys((*as_planned.of_borders, *self._plan.tensors)):
            tensor, taken = self._tensors.get(name), as_planned.of_borders.get(name, 0.0)
            if tensor is None:
                continue
            maker = edit.producer(tensor)
            users = [n for n in edit.consumers(tensor) if n in self._parent and self._is_static(n)]
            readers = tuple(dict.fromkeys(map(self._first, users)))
            if maker is not None and maker in self._parent and (self._is_static(maker) or not readers):
                made = self._first(maker)
                cost[made, _PLANNED] += taken
                if name in self._plan.tensors and any(reader is not made for reader in readers):
                    yield (made, *readers), self._crossing(name)
            elif readers:
                yield (None, *readers), taken

    def _crossing(self, name: str) -> float:
        """Microseconds of quantizing or dequantizing a tensor."""
        count, rank = self._elements.get(name, (0, 0))
        return self._border.fixed + count * (self._border.each_of_pictures if rank == _PICTURE else self._border.each)

    def _taken(self, kernels: Iterable[Kernel]) -> float:
        return sum(max(kernel.microseconds - self._border.profiled, 0.0) for kernel in kernels)

    def _is_static(self, node: Node) -> bool:
        return self._how.get(node.label) == STATIC

    def _first(self, node: Node) -> Node:
        above: Node = self._parent[node]
        return above if above is node else self._first(above)

    def _read(self, kernels: Sequence[Kernel]) -> _Times:
        """Join the nodes that each kernel computes, and add up times."""
        named = self._named(kernels)
        readers = defaultdict[str, list[Kernel]](list)
        for kernel in kernels:
            for name in kernel.inputs:
                readers[name].append(kernel)
        seen = (name for kernel in kernels for name in (*kernel.inputs, *kernel.outputs))
        known = {named[name] for name in seen if name in named}
        times = _Times()
        for kernel in kernels:
            for name in kernel.outputs:
                if name in named and kernel.shape is not None:
                    self._elements[named[name]] = (math.prod(kernel.shape), len(kernel.shape))
            if self._is_border(kernel) and kernel.inputs[0] in named:
                times.of_borders[named[kernel.inputs[0]]] += self._taken([kernel])
                continue
            made = list(dict.fromkeys(t for name in kernel.outputs for t in _ahead(name, named, readers)))
            nodes = [node for name in made for node in self._computed(name, known)]
            for node in nodes:
                self._parent[self._first(node)] = self._first(nodes[0])
            if nodes:
                times.of_nodes[nodes[0]] += self._taken([kernel])
        return times

    def _is_border(self, kernel: Kernel) -> bool:
        if kernel.op not in _BORDERS or not kernel.inputs:
            return False
        return kernel.op != "Transpose" or (kernel.name not in self._by_name and kernel.outputs[0] not in self._tensors)

    def _named(self, kernels: Sequence[Kernel]) -> dict[str, str]:
        """Tensor of an optimized graph -> the tensor of the float model that holds the same values."""
        named = {name: name for name in self._tensors}
        for kernel in kernels:
            for name in kernel.outputs:
                if name and name not in named and (found := self._same(kernel, named)):
                    named[name] = found
        return named

    def _same(self, kernel: Kernel, named: Mapping[str, str]) -> str:
        if self._is_border(kernel):
            return named.get(kernel.inputs[0], "")
        if len(kernel.outputs) > 1:
            return ""
        base = _RENAMED.sub("", kernel.name)
        if base in self._tensors:
            return base
        node = self._by_name.get(base)
        if node is None:
            return ""
        users = edit.consumers(node.outputs[0])
        after = users[0] if len(users) == 1 and users[0].op in _FUSED and self._is_static(users[0]) else node
        return str(after.outputs[0].name)

    def _computed(self, name: str, known: Collection[str]) -> Iterator[Node]:
        """The nodes that compute a tensor from known ones."""
        seen = set[Node]()
        stack = [self._tensors[name]] if name in self._tensors else []
        while stack:
            node = edit.producer(stack.pop())
            if node is None or node in seen or node not in self._parent:
                continue
            seen.add(node)
            yield node
            stack += [t for t in node.inputs if t.name not in known]


def _ahead(name: str, named: Mapping[str, str], readers: Mapping[str, Sequence[Kernel]]) -> Iterable[str]:
    """The tensor of the float model that a tensor of an optimized graph becomes."""
    found, seen, front = dict[str, None](), set[str](), [name]
    while front:
        at = front.pop()
        if at in named:
            found[named[at]] = None
        elif at and at not in seen:
            seen.add(at)
            front += [out for kernel in readers.get(at, ()) for out in kernel.outputs]
    return found



def _whole(microseconds: float) -> int:
    """Nanoseconds: costs of a cut are whole numbers."""
    return round(1e3 * microseconds)
