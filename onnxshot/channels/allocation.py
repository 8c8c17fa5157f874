"""How many channels each group loses: greedily, the step of least loss per saved cost, until the target is met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshot.channels.branches import Branch
from onnxshot.channels.costs import Cost
from onnxshot.channels.groups import step_size
from onnxshot.channels.removal import Removal
from onnxshot.channels.removal_curve import RemovalCurve

_STEPS = 32  # steps that a large group is removed in
_AHEAD = (1, 2, 4, 8, 16, _STEPS)  # steps to look ahead: a curve may flatten, or time be saved, only further on
_FREE = 1e-12  # loss at or below which a step counts as free
_CLOSE = 0.1  # overshoot that is still close to the target, as a share of the requested reduction
_TIMELESS = 0.01  # least share of time that a step counts as saving, relative to the share of work that it saves


@dataclass(slots=True)
class Allocation:
    """How many channels of each group are removed; mutable, it grows step by step.

    The benefit of a step is the geometric mean of the shares of work and of time that it saves. Work that takes no
    time, such as channels inside a block that the kernels compute anyway, is therefore removed last.

    Attributes:
        curves: Order and loss of removal of each group.
        work: The cost that the target limits.
        multiple: Layers lose a multiple of this many channels; their width becomes a multiple where possible.
        count: Number of channels in the model.
        time: Time of the layers; None if only the work counts.
        branches: Residual branches that are removed as a whole.
        cut: Number of removed channels of each curve.
        alive: [count] whether each channel remains.
        total: The work before any removal.
    """

    curves: Sequence[RemovalCurve]
    work: Cost
    multiple: int
    count: int
    time: Cost | None = None
    branches: Sequence[Branch] = ()
    cut: list[int] = field(init=False)
    alive: NDArray[np.bool_] = field(init=False)
    total: float = field(init=False)
    _left: float = field(init=False)
    _chunks: list[int] = field(init=False)
    _works: list[tuple[Cost, float]] = field(init=False)
    _touched: list[list[list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.alive = np.ones(self.count, bool)
        self.total = self.work.left(self.alive)
        self._works = [(self.work, self.total or 1.0)]
        if self.time is not None and (total := self.time.left(self.alive)):
            self._works.append((self.time, total))
        self._chunks = [step_size(curve.group, self.multiple) for curve in self.curves]
        self._touched = [[work.touched(curve.group.ids) for work, _ in self._works] for curve in self.curves]
        self.reset_to([0] * len(self.curves))

    @property
    def share(self) -> float:
        """Remaining share of the work."""
        return self._left / self.total if self.total else 1.0

    def as_removal(self) -> Removal:
        """The channels and branches that are removed now."""
        return Removal(tuple(self.branches), self.alive.copy())

    def remove_until(self, share: float) -> bool:
        """Remove channels until at most this share of the work remains. Return False if nothing more can be removed."""
        before: list[list[int]] = [[] for _ in self.curves]  # removed channels of each curve before each step
        while self.share > share:
            best = min((step for i in range(len(self.curves)) for step in self._steps(i, share)), default=None)
            if best is None:
                return False
            _, number, end = best
            # The last step is no longer than the target requires.
            enough = [n for n in self._stops(number) if n < end and self.share - self._saved(number, n)[0] <= share]
            _, stop = min((self._rate(number, n, share), n) for n in (*enough, end))
            before[number].append(self.cut[number])
            self._take(number, stop)
        while (spare := self._spare(before, share)) is not None:
            self.reset_to([before[i].pop() if i == spare else n for i, n in enumerate(self.cut)])
        if self.is_far(share):
            self._give_back(share)
        return True

    def is_far(self, share: float) -> bool:
        """Whether much more is removed than this share requires."""
        return share - self.share > _CLOSE * (1 - share)

    def _give_back(self, share: float) -> None:
        """Restore as many channels of each curve as the target allows, starting with the curve of greatest loss.

        A step may have overshot the target because it saves time. Time alone does not justify a greater loss.
        """
        lost = [float(curve.loss[cut]) for curve, cut in zip(self.curves, self.cut, strict=True)]
        for number in sorted((n for n, loss in enumerate(lost) if loss > _FREE), key=lambda n: -lost[n]):
            kept = list(self.cut)
            width, by = len(self.curves[number].group.ids), self._chunks[number]
            stops = [0, *range(width % by or by, kept[number], by), kept[number]]
            low, high = 0, len(stops) - 1  # the last stop meets the target
            while low < high:
                middle = (low + high) // 2
                self.reset_to([*kept[:number], stops[middle], *kept[number + 1 :]])
                low, high = (low, middle) if self.share <= share else (middle + 1, high)
            self.reset_to([*kept[:number], stops[high], *kept[number + 1 :]])

    def _spare(self, before: Sequence[Sequence[int]], share: float) -> int | None:
        """The curve with the costliest last step that the target does not need; None if all last steps are needed."""
        kept, found = list(self.cut), []
        for number, steps in enumerate(before):
            if steps:
                self.reset_to([*kept[:number], steps[-1], *kept[number + 1 :]])
                lost = float(self.curves[number].loss[kept[number]] - self.curves[number].loss[steps[-1]])
                if self.share <= share and lost > _FREE:
                    found.append((lost, number))
        self.reset_to(kept)
        return max(found)[1] if found else None

    def reset_to(self, cut: Sequence[int]) -> None:
        """Set the number of removed channels of each curve."""
        self.cut = list(cut)
        self.alive[:] = True
        for branch in self.branches:
            self.alive[branch.ids] = False
        self._left = self.work.left(self.alive)
        for number, stop in enumerate(cut):
            self._take(number, stop)

    def _steps(self, number: int, share: float) -> Iterator[tuple[float, int, int]]:
        """(loss per benefit, curve, removed channels after the step) of the next possible steps of a curve."""
        stops = self._stops(number)
        large = max(1, len(self.curves[number].group.ids) // _STEPS // self._chunks[number])
        for stop in sorted({stops[min(ahead * large, len(stops)) - 1] for ahead in _AHEAD if stops}):
            rate = self._rate(number, stop, share)
            if rate < math.inf:
                yield rate, number, stop

    def _rate(self, number: int, stop: int, share: float) -> float:
        """Loss per benefit of a step; infinite if it saves no work. Savings beyond the target are no benefit."""
        work, *time = self._saved(number, stop)
        if work <= 0:
            return math.inf
        benefit = math.sqrt(work * max(*time, _TIMELESS * work)) if time else work
        curve = self.curves[number]
        lost = max(float(curve.loss[stop] - curve.loss[self.cut[number]]), _FREE)
        return lost / (benefit * min(1.0, (self.share - share) / work))

    def _stops(self, number: int) -> list[int]:
        """Larger numbers of removed channels of a curve that leave a multiple of the step size."""
        width, most, by = len(self.curves[number].group.ids), len(self.curves[number].order), self._chunks[number]
        first = self.cut[number] + ((width - self.cut[number]) % by or by)
        return list(range(first, most + 1, by))

    def _saved(self, number: int, stop: int) -> list[float]:
        """Shares of the work, and of the time, that removing a curve's channels up to `stop` saves."""
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
