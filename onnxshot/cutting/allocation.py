"""Which group gives up how many channels: always those whose loss per work saved is least, until the target is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxshot.cutting.groups import Cost, chunk
from onnxshot.cutting.importance import Curve

_AHEAD = (1, 2, 4)  # steps that are looked ahead: a curve may get flatter behind a steep place
_STEPS = 32  # of a large group are taken at once: so many make all of it
_FREE = 1e-12  # loss per share of the work below which nothing is lost


@dataclass(slots=True)
class Allocation:
    """How many channels of each curve are cut; grows step by step, and a smaller target is always part of a larger.

    Attributes:
        kind: what is saved: 'macs' or 'params'.
        multiple: every layer's width loses a multiple of it, and where it can, is one.
    """

    curves: Sequence[Curve]
    cost: Cost
    kind: Literal["macs", "params"]
    multiple: int
    cut: list[int] = field(init=False)
    alive: NDArray[np.bool_] = field(init=False)
    total: float = field(init=False)
    _left: float = field(init=False)
    _chunks: list[int] = field(init=False)
    _touched: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.alive = np.ones(self.cost.count, bool)
        self.cut = [0] * len(self.curves)
        self.total = self._left = self._of(None)
        self._chunks = [chunk(curve.group, self.multiple) for curve in self.curves]
        self._touched = [self.cost.touched(curve.group, self.kind) for curve in self.curves]

    @property
    def share(self) -> float:
        """What is left of the work, or of the parameters."""
        return self._left / self.total if self.total else 1.0

    @property
    def removed(self) -> frozenset[int]:
        """Numbers of what is cut."""
        return frozenset(i for c, n in zip(self.curves, self.cut, strict=True) for i in c.order[:n].tolist())

    @property
    def loss(self) -> float:
        """What the outputs are expected to lose, as a share of their energy."""
        return sum(float(curve.loss[n]) for curve, n in zip(self.curves, self.cut, strict=True))

    def shrink_to(self, share: float) -> bool:
        """Cut on until no more than this share is left; False where there is nothing more to cut before."""
        while self.share > share:
            best = min((step for i in range(len(self.curves)) for step in self._steps(i, share)), default=None)
            if best is None:
                return False
            _, number, end = best
            # The last step is no longer than it must be.
            for stop in self._stops(number):
                if stop >= end or self._share_at(number, stop) <= share:
                    self._take(number, stop)
                    break
        return True

    def go_back(self, cut: Sequence[int]) -> None:
        """To what was cut before."""
        self.alive[:] = True
        for number, stop in enumerate(cut):
            self._take(number, stop)
        self._left = self._of(None)

    def _steps(self, number: int, share: float) -> list[tuple[float, int, int]]:
        """(loss per share of the work, curve, channels cut then) of the steps that a curve may take next.

        What a step saves beyond the target is worth nothing: the last one is the one that loses least.
        """
        curve, stops = self.curves[number], self._stops(number)
        large = max(1, len(curve.group.ids) // _STEPS // self._chunks[number])
        found, before, now = [], float(curve.loss[self.cut[number]]), self.share
        for ahead in _AHEAD:
            at = ahead * large - 1
            if at < len(stops):
                saved = now - max(self._share_at(number, stops[at]), share)
                if saved > 0:
                    found.append((max(float(curve.loss[stops[at]]) - before, _FREE) / saved, number, stops[at]))
        if not found and stops and now > self._share_at(number, stops[-1]):
            lost = max(float(curve.loss[stops[-1]]) - before, _FREE)
            found.append((lost / (now - max(self._share_at(number, stops[-1]), share)), number, stops[-1]))
        return found

    def _stops(self, number: int) -> list[int]:
        """How many channels of a curve may be cut instead of what is: such that what stays is a multiple."""
        width, most, by = len(self.curves[number].group.ids), len(self.curves[number].order), self._chunks[number]
        first = self.cut[number] + ((width - self.cut[number]) % by or by)
        return list(range(first, most + 1, by))

    def _share_at(self, number: int, stop: int) -> float:
        order, old = self.curves[number].order, self.cut[number]
        before = self._of(self._touched[number])
        self.alive[order[old:stop]] = False
        after = self._of(self._touched[number])
        self.alive[order[old:stop]] = True
        return self.share - (before - after) / self.total

    def _take(self, number: int, stop: int) -> None:
        self.alive[self.curves[number].order[:stop]] = False
        self.cut[number] = stop
        self._left = self._of(None)

    def _of(self, touching: Sequence[int] | None) -> float:
        return self.cost.macs(self.alive, touching) if self.kind == "macs" else self.cost.params(self.alive, touching)
