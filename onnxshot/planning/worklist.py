"""A worklist: visit nodes again and again until nothing changes, but only those whose inputs have changed.

A dict records which node read which entry. If the entry changes, these nodes are visited again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from onnxshot.graph import Node

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Visits:
    """The state that all `TrackedDict`s of one run share.

    Attributes:
        visiting: the node being visited; None between visits.
        stale: nodes that read an entry that has changed since.
    """

    def __init__(self) -> None:
        self.visiting: Node | None = None
        self.stale: dict[Node, None] = {}


class TrackedDict(dict[Key, Value]):
    """A dict that records which node read an entry, and marks these nodes stale if the entry changes."""

    def __init__(self, given: dict[Key, Value], visits: Visits) -> None:
        super().__init__(given)
        self._visits = visits
        self._readers: dict[Key, dict[Node, None]] = {}

    def _record(self, key: Any) -> None:
        if self._visits.visiting is not None:
            self._readers.setdefault(key, {})[self._visits.visiting] = None

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry, or the default, recorded as read."""
        self._record(key)
        return super().get(key, default)

    def __getitem__(self, key: Key) -> Value:
        """The entry, recorded as read. Raises KeyError if there is none."""
        self._record(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry, recorded as read."""
        self._record(key)
        return super().__contains__(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set the entry. The nodes that read it become stale."""
        super().__setitem__(key, value)
        self._visits.stale |= self._readers.pop(key, {})

    def __delitem__(self, key: Key) -> None:
        """Delete the entry. The nodes that read it become stale. Raises KeyError if there is none."""
        super().__delitem__(key)
        self._visits.stale |= self._readers.pop(key, {})


def settle(visits: Visits, sweeps: Iterable[tuple[Iterable[Node], Callable[[Node], None]]]) -> None:
    """Visit the nodes of each sweep in order, sweep after sweep, round after round, until nothing changes.

    The result is the same as if each round visited all nodes, but only the first round does. Later rounds visit stale
    nodes only: a chain of n nodes that changes from its end takes n rounds, which would cost n * n visits.

    Args:
        visits: the state shared by the dicts that `visit` reads and writes.
        sweeps: (nodes in order, function to call for each) pairs.
    """
    queues = [_Sweep(list(nodes), visit) for nodes, visit in sweeps]
    while any(queue.waiting for queue in queues):
        for queue in queues:
            queue.run(visits, queues)
    visits.visiting = None


class _Sweep:
    """The nodes of one sweep in order, and the places of those that wait for a visit."""

    def __init__(self, nodes: list[Node], visit: Callable[[Node], None]) -> None:
        self.nodes, self.visit = nodes, visit
        self.place = {node: i for i, node in enumerate(nodes)}
        self.waiting = list(range(len(nodes)))

    def run(self, visits: Visits, queues: list[_Sweep]) -> None:
        """Visit the waiting nodes in order. Nodes before the current one that become stale wait for the next round."""
        now, queued = self.waiting, set(self.waiting)
        heapify(now)
        self.waiting = []
        later: set[int] = set()
        while now:
            at = heappop(now)
            queued.discard(at)
            visits.visiting = self.nodes[at]
            self.visit(self.nodes[at])
            visits.visiting = None
            for node in visits.stale:
                place = self.place.get(node)
                if place is None:
                    continue
                if place <= at:
                    later.add(place)
                elif place not in queued:
                    queued.add(place)
                    heappush(now, place)
            for queue in queues:
                if queue is not self:
                    queue.waiting += [queue.place[node] for node in visits.stale if node in queue.place]
            visits.stale = {}
        self.waiting += later
