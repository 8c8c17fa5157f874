"""The cheapest way to give each of many things one of two labels: a minimum cut, found by maximum flow.

Source: Boykov, Kolmogorov, "An Experimental Comparison of Min-Cut/Max-Flow Algorithms" (2004), section 2; the flow is
Dinic's (1970). Capacities are integers, so the result is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

_ENDLESS = 1 << 120
_SOURCE, _SINK = 0, 1


@dataclass(slots=True)
class MinimumCut:
    """Costs of labels 0 and 1, filled by `alone` and `together`; `solve` gives the labels with the least sum of costs.

    Several labellings may be the cheapest: the one with the fewest labels 0 is given.
    """

    _number: dict[Hashable, int] = field(default_factory=dict)
    _heads: list[list[int]] = field(default_factory=lambda: [[], []])  # node -> edges that leave it
    _to: list[int] = field(default_factory=list)  # edge -> the node it leads to; edge ^ 1 leads back
    _room: list[int] = field(default_factory=list)  # edge -> capacity that is left

    def add_label_cost(self, thing: Hashable, label: int, cost: int) -> None:
        """The thing costs this where it gets this label."""
        node = self._node(thing)
        self._edge(*((node, _SINK) if label == 0 else (_SOURCE, node)), cost)

    def fix_label(self, thing: Hashable, label: int) -> None:
        """The thing gets this label whatever it costs."""
        self.add_label_cost(thing, 1 - label, _ENDLESS)

    def add_split_cost(self, things: Iterable[Hashable], cost: int) -> None:
        """These cost this once, where they do not all get the same label."""
        begin, end = self._new(), self._new()
        self._edge(begin, end, cost)
        for thing in things:
            node = self._node(thing)
            self._edge(node, begin, _ENDLESS)
            self._edge(end, node, _ENDLESS)

    def solve(self) -> dict[Hashable, int]:
        """The cheapest labels."""
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
        """Steps from the source along edges with room; -1 where none leads there."""
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
        """Send flow along one path of rising levels; False where there is none left. at: each node's next edge."""
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
