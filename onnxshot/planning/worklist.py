"""A greatest fixed point in sweeps over the nodes, where only those are looked at again whose grounds have changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from onnxshot.graph import Node

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Watch:
    """Who asked for what: `asking` is the node that is looked at; `changed` are those that asked for what is new."""

    def __init__(self) -> None:
        self.asking: Node | None = None
        self.changed: dict[Node, None] = {}


class Watched(dict[Key, Value]):
    """A dict that remembers which node asked for an entry, and names it in `watch` when the entry changes."""

    def __init__(self, given: dict[Key, Value], watch: Watch) -> None:
        super().__init__(given)
        self._watch = watch
        self._askers: dict[Key, dict[Node, None]] = {}

    def _ask(self, key: Any) -> None:
        if self._watch.asking is not None:
            self._askers.setdefault(key, {})[self._watch.asking] = None

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry, or the default."""
        self._ask(key)
        return super().get(key, default)

    def __getitem__(self, key: Key) -> Value:
        """The entry. Raises KeyError where there is none."""
        self._ask(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry."""
        self._ask(key)
        return super().__contains__(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set the entry; who asked for it is looked at again."""
        super().__setitem__(key, value)
        self._watch.changed |= self._askers.pop(key, {})

    def __delitem__(self, key: Key) -> None:
        """Take out the entry; who asked for it is looked at again. Raises KeyError where there is none."""
        super().__delitem__(key)
        self._watch.changed |= self._askers.pop(key, {})


def settle(watch: Watch, sweeps: Iterable[tuple[Iterable[Node], Callable[[Node], None]]]) -> None:
    """Look at the nodes of each sweep in their order, sweep after sweep, round after round, until nothing changes.

    A node whose grounds changed behind it is looked at again in the next round, as if each round looked at all. A chain
    that comes undone from its end takes as many rounds as it has nodes: so no round looks at all but the first.
    """
    rows = [_Sweep(list(nodes), look) for nodes, look in sweeps]
    while any(row.waiting for row in rows):
        for row in rows:
            row.run(watch, rows)
    watch.asking = None


class _Sweep:
    """Nodes in order, and the places of those that wait to be looked at: in this sweep, or in the next round's."""

    def __init__(self, nodes: list[Node], look: Callable[[Node], None]) -> None:
        self.nodes, self.look = nodes, look
        self.place = {node: i for i, node in enumerate(nodes)}
        self.waiting = list(range(len(nodes)))

    def run(self, watch: Watch, rows: list[_Sweep]) -> None:
        """Look at what waits, from the first place to the last."""
        now, queued = self.waiting, set(self.waiting)
        heapify(now)
        self.waiting = []
        later: set[int] = set()
        while now:
            at = heappop(now)
            queued.discard(at)
            watch.asking = self.nodes[at]
            self.look(self.nodes[at])
            watch.asking = None
            for node in watch.changed:
                place = self.place.get(node)
                if place is None:
                    continue
                if place <= at:
                    later.add(place)
                elif place not in queued:
                    queued.add(place)
                    heappush(now, place)
            for row in rows:
                if row is not self:
                    row.waiting += [row.place[node] for node in watch.changed if node in row.place]
            watch.changed = {}
        self.waiting += later
