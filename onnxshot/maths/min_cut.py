"""Binary labelling of least cost, solved exactly as a minimum cut.

Source: Boykov and Kolmogorov 2004 (An Experimental Comparison of Min-Cut/Max-Flow Algorithms), section 2. The maximum
flow is found with Dinic's algorithm (1970) on integer capacities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

_ENDLESS = 1 << 120
_SOURCE, _SINK = 0, 1


@dataclass(slots=True)
class MinimumCut:
    """A problem in which each of several things gets the label 0 or 1, at the least sum of costs.

    Example:
        >>> problem = MinimumCut()
        >>> problem.add_label_cost("a", 1, 5)
        >>> problem.add_label_cost("b", 0, 1)
        >>> problem.add_split_cost(("a", "b"), 3)
        >>> problem.solve()
        {'a': 0, 'b': 0}
    """

    _number: dict[Hashable, int] = field(default_factory=dict)
    _heads: list[list[int]] = field(default_factory=lambda: [[], []])  # node -> edges that leave it
    _to: list[int] = field(default_factory=list)  # edge -> the node it leads to; edge ^ 1 leads back
    _room: list[int] = field(default_factory=list)  # edge -> residual capacity

    def add_label_cost(self, thing: Hashable, label: int, cost: int) -> None:
        """Add a cost, 0 or more, that is paid where the thing gets this label."""
        node = self._node(thing)
        self._edge(*((node, _SINK) if label == 0 else (_SOURCE, node)), cost)

    def fix_label(self, thing: Hashable, label: int) -> None:
        """Force the thing to get this label."""
        self.add_label_cost(thing, 1 - label, _ENDLESS)

    def add_split_cost(self, things: Iterable[Hashable], cost: int) -> None:
        """Add a cost, 0 or more, that is paid once where the things do not all get the same label."""
        begin, end = self._new(), self._new()
        self._edge(begin, end, cost)
        for thing in things:
            node = self._node(thing)
            self._edge(node, begin, _ENDLESS)
            self._edge(end, node, _ENDLESS)

    def solve(self) -> dict[Hashable, int]:
        """Return the labels of least total cost; of several such labellings, the one with the fewest labels 0."""
        while (level := self._levels())[_SINK] >= 0:
            at = [0] * len(self._heads)
            while self._push(level, at):
                pass
        return {thing: 0 if level[node] >= 0 else 1 for thing, node in self._number.items()}

    def _node(self, thing: Hashable) -> int:
        if thing not in self._number:
            self._number[thing] = self._new()
        return self._number[thing]

    def _new(self) -> int:
        self._heads.append([])
        return len(self._heads) - 1

    def _edge(self, start: int, end: int, room: int) -> None:
        for a, b, c in ((start, end, room), (end, start, 0)):
            self._heads[a].append(len(self._to))
            self._to.append(b)
            self._room.append(c)

    def _levels(self) -> list[int]:
        """Distance of each node from the source along edges with spare capacity; -1 where it cannot be reached."""
        level = [-1] * len(self._heads)
        level[_SOURCE] = 0
        queue = deque([_SOURCE])
        while queue:
            node = queue.popleft()
            for edge in self._heads[node]:
                if self._room[edge] and level[self._to[edge]] < 0:
                    level[self._to[edge]] = level[node] + 1
                    queue.append(self._to[edge])
        return level

    def _push(self, level: list[int], at: list[int]) -> bool:
        """Send flow along one shortest path (Dinic); False if none is left. at: the next edge to try per node."""
        path: list[int] = []
        node = _SOURCE
        while node != _SINK:
            edges = self._heads[node]
            while at[node] < len(edges):
                edge = edges[at[node]]
                if self._room[edge] and level[self._to[edge]] == level[node] + 1:
                    break
                at[node] += 1
            if at[node] < len(edges):
                path.append(edges[at[node]])
                node = self._to[path[-1]]
            elif not path:
                return False
            else:
                edge = path.pop()
                node = self._to[edge ^ 1]
                at[node] += 1
        flow = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= flow
            self._room[edge ^ 1] += flow
        return True
