"""Which group gives up how many channels: always those whose loss per work saved is least, until the target is met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshot.channels.branches import Branch
from onnxshot.channels.cut import Cut
from onnxshot.channels.groups import chunk
from onnxshot.channels.importance import Curve
from onnxshot.channels.savings import Work

_STEPS = 32  # of a large group are taken at once: so many make all of it
_AHEAD = (1, 2, 4, 8, 16, _STEPS)  # that are looked ahead: a curve may get flatter, or time be saved, further on
_FREE = 1e-12  # loss per share of the work below which nothing is lost
_CLOSE = 0.1  # of what was to be cut: a cut that goes further beyond the target is far from it
_TIMELESS = 0.01  # of the share of work that is saved: what saves no time counts as if it saved this share of it


@dataclass(slots=True)
class Allocation:
    """How many channels of each curve are cut; grows step by step.

    A step is worth the geometric mean of the shares of work and of time that it saves: work that takes no time, such as
    channels within a block that kernels compute in any case, is cut last.

    Attributes:
        work: what the target is a share of.
        multiple: every layer's width loses a multiple of it, and where it can, is one.
        count: how many numbers channels have.
        time: what layers take; None where only the work counts.
        branches: what is left out whole.
    """

    curves: Sequence[Curve]
    work: Work
    multiple: int
    count: int
    time: Work | None = None
    branches: Sequence[Branch] = ()
    cut: list[int] = field(init=False)
    alive: NDArray[np.bool_] = field(init=False)
    total: float = field(init=False)
    _left: float = field(init=False)
    _chunks: list[int] = field(init=False)
    _works: list[tuple[Work, float]] = field(init=False)
    _touched: list[list[list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.alive = np.ones(self.count, bool)
        self.total = self.work.left(self.alive)
        self._works = [(self.work, self.total or 1.0)]
        if self.time is not None and (total := self.time.left(self.alive)):
            self._works.append((self.time, total))
        self._chunks = [chunk(curve.group, self.multiple) for curve in self.curves]
        self._touched = [[work.touched(curve.group.ids) for work, _ in self._works] for curve in self.curves]
        self.go_back([0] * len(self.curves))

    @property
    def share(self) -> float:
        """What is left of the work."""
        return self._left / self.total if self.total else 1.0

    def as_cut(self) -> Cut:
        """What is cut now."""
        return Cut(tuple(self.branches), self.alive.copy())

    def shrink_to(self, share: float) -> bool:
        """Cut on until no more than this share is left; False where there is nothing more to cut before."""
        before: list[list[int]] = [[] for _ in self.curves]  # what was cut of each curve, step by step
        while self.share > share:
            best = min((step for i in range(len(self.curves)) for step in self._steps(i, share)), default=None)
            if best is None:
                return False
            _, number, end = best
            # The last step is no longer than it must be.
            enough = [n for n in self._stops(number) if n < end and self.share - self._saved(number, n)[0] <= share]
            _, stop = min((self._rate(number, n, share), n) for n in (*enough, end))
            before[number].append(self.cut[number])
            self._take(number, stop)
        while (spare := self._spare(before, share)) is not None:
            self.go_back([before[i].pop() if i == spare else n for i, n in enumerate(self.cut)])
        if self.is_far(share):
            self._give_back(share)
        return True

    def is_far(self, share: float) -> bool:
        """Whether much more is cut than it takes to leave this share."""
        return share - self.share > _CLOSE * (1 - share)

    def _give_back(self, share: float) -> None:
        """Cut each curve no further than the target needs, those first that lose most.

        A step may go far beyond the target for the time that it saves: time is no reason to lose more than was asked.
        """
        lost = [float(curve.loss[cut]) for curve, cut in zip(self.curves, self.cut, strict=True)]
        for number in sorted((n for n, loss in enumerate(lost) if loss > _FREE), key=lambda n: -lost[n]):
            kept = list(self.cut)
            width, by = len(self.curves[number].group.ids), self._chunks[number]
            stops = [0, *range(width % by or by, kept[number], by), kept[number]]
            low, high = 0, len(stops) - 1  # the last meets the target
            while low < high:
                middle = (low + high) // 2
                self.go_back([*kept[:number], stops[middle], *kept[number + 1 :]])
                low, high = (low, middle) if self.share <= share else (middle + 1, high)
            self.go_back([*kept[:number], stops[high], *kept[number + 1 :]])

    def _spare(self, before: Sequence[Sequence[int]], share: float) -> int | None:
        """The curve whose last step loses most, of those without which the target is met: large steps overshoot it."""
        kept, found = list(self.cut), []
        for number, steps in enumerate(before):
            if steps:
                self.go_back([*kept[:number], steps[-1], *kept[number + 1 :]])
                lost = float(self.curves[number].loss[kept[number]] - self.curves[number].loss[steps[-1]])
                if self.share <= share and lost > _FREE:
                    found.append((lost, number))
        self.go_back(kept)
        return max(found)[1] if found else None

    def go_back(self, cut: Sequence[int]) -> None:
        """To what was cut before."""
        self.cut = list(cut)
        self.alive[:] = True
        for branch in self.branches:
            self.alive[branch.ids] = False
        self._left = self.work.left(self.alive)
        for number, stop in enumerate(cut):
            self._take(number, stop)

    def _steps(self, number: int, share: float) -> Iterator[tuple[float, int, int]]:
        """(loss per worth, curve, channels cut then) of the steps that a curve may take next."""
        stops = self._stops(number)
        large = max(1, len(self.curves[number].group.ids) // _STEPS // self._chunks[number])
        for stop in sorted({stops[min(ahead * large, len(stops)) - 1] for ahead in _AHEAD if stops}):
            rate = self._rate(number, stop, share)
            if rate < math.inf:
                yield rate, number, stop

    def _rate(self, number: int, stop: int, share: float) -> float:
        """Loss per worth of a step, infinite where it saves nothing; what it saves beyond the target has no worth."""
        work, *time = self._saved(number, stop)
        if work <= 0:
            return math.inf
        worth = math.sqrt(work * max(*time, _TIMELESS * work)) if time else work
        curve = self.curves[number]
        lost = max(float(curve.loss[stop] - curve.loss[self.cut[number]]), _FREE)
        return lost / (worth * min(1.0, (self.share - share) / work))

    def _stops(self, number: int) -> list[int]:
        """How many channels of a curve may be cut instead of what is: such that what stays is a multiple."""
        width, most, by = len(self.curves[number].group.ids), len(self.curves[number].order), self._chunks[number]
        first = self.cut[number] + ((width - self.cut[number]) % by or by)
        return list(range(first, most + 1, by))

    def _saved(self, number: int, stop: int) -> list[float]:
        """Shares of the work, and of the time, that cutting a curve up to there saves."""
        more = self.curves[number].order[self.cut[number] : stop]
        more = more[self.alive[more]]
        touched = self._touched[number]
        before = [work.left(self.alive, parts) for (work, _), parts in zip(self._works, touched, strict=True)]
        self.alive[more] = False
        after = [work.left(self.alive, parts) for (work, _), parts in zip(self._works, touched, strict=True)]
        self.alive[more] = True
        return [(b - a) / total for b, a, (_, total) in zip(before, after, self._works, strict=True)]

    def _take(self, number: int, stop: int) -> None:
        self.alive[self.curves[number].order[:stop]] = False
        self.cut[number] = stop
        self._left = self.work.left(self.alive)
