"""A pass over calibration samples in parts, by several processes: to the bit what one process would have found.

Statistics merge exactly, in any order. When ranges have settled depends on the order of the samples too, but of each
only on the extremes of its rows: parts hand these over sample by sample, and they are gone through here in the order of
a single pass. A pass may end at a few numbers of samples only (`settling.stops`), so that all parts up to the next one
can be made at once, and nothing is looked at that a single pass would not have looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.enough_samples import Settling, stops
from onnxshot.calibration.observers import Glimpse, Observers
from onnxshot.calibration.outliers import Outliers, is_blank
from onnxshot.calibration.statistics_file import Statistics
from onnxshot.calibration.stats import NO_STATS, TensorStats, merge
from onnxshot.execution.collect import notes_of, observe_samples, order_of
from onnxshot.execution.observed_tensors import CalibrationPass
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings

LEAST = 8
"""Samples that a part is worth, where the pass may end soon: loading a model takes as long as some twenty."""

_UNKNOWN = 1 << 62  # how many samples there are, before the first part has told


@dataclass(frozen=True, slots=True)
class Shard:
    """Samples that one process looks at: of those from place `start` to `stop` of the order, every count-th.

    stop: None for all that follow. part: which of `count` shares this is.
    """

    start: int = 0
    stop: int | None = None
    part: int = 0
    count: int = 1

    def of(self, order: Sequence[int]) -> list[tuple[int, int]]:
        """(place, number) of each of its samples."""
        return list(enumerate(order))[self.start : self.stop][self.part :: self.count]


@dataclass(frozen=True, slots=True)
class PassInfo:
    """What the first process tells of the whole pass; digests: of all samples; key: of the statistics."""

    key: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    statistics: Statistics  # without any tensor, and as if no sample had been run


@dataclass(frozen=True)
class ShardResult:
    """What came of a share.

    Attributes:
        stats: of every tensor.
        places: of the samples in the order; numbers, digests: the same of them.
        outliers: among them.
        blank: (place, name) of samples that are one value throughout.
        rows: of every tensor, in the first sample [n]; even: whether all samples have as many [n].
        seen: of each sample what tells when ranges have settled, where that is asked.
        head: of the first part.
    """

    stats: Sequence[TensorStats]
    places: Sequence[int]
    numbers: Sequence[int]
    digests: Sequence[str]
    outliers: Outliers
    blank: Sequence[tuple[int, str]]
    rows: NDArray[np.int64]
    even: NDArray[np.bool_]
    seen: Sequence[Glimpse] = ()
    head: PassInfo | None = None


def run_shard(watch: CalibrationPass, share: Shard, recipe: Recipe, settings: Settings) -> ShardResult:
    """Look at a share of a pass. Raises CalibrationError and ModelError as `collect` does."""
    head = None
    if share.start == share.part == 0:
        digests = watch.samples.digests()
        empty = watch.statistics({}, (), digests, ())
        head = PassInfo(watch.key(digests, recipe, settings.device), tuple(watch.names), tuple(digests), empty)
    mine = share.of(order_of(len(watch.samples), settle=watch.settle))
    n = len(watch.names)
    observers, outliers = Observers(n), Outliers(n)
    blank: list[tuple[int, str]] = []
    seen: list[Glimpse] = []
    rows, even = np.zeros(n, np.int64), np.ones(n, bool)
    numbers = [number for _, number in mine]
    looking = observe_samples(
        watch.model, watch.names, watch.samples, numbers, channels=watch.channels, threads=settings.threads,
        device=settings.device,
    )  # fmt: skip
    for i, ((place, _), (sample, glimpse)) in enumerate(zip(mine, looking, strict=True) if mine else ()):
        observers.add(glimpse)
        outliers.add(glimpse, sample.name)
        if is_blank(sample.feed):
            blank.append((place, sample.name))
        rows = glimpse.rows if i == 0 else rows
        even &= glimpse.rows == rows
        if watch.settle:
            seen.append(_without_picks(glimpse))
    digests = watch.samples.subset(numbers).digests() if head is None else [head.digests[i] for i in numbers]
    places = [place for place, _ in mine]
    return ShardResult(observers.stats(), places, numbers, digests, outliers, blank, rows, even, seen, head)


@dataclass(slots=True)
class ShardedPass:
    """A pass under way: which shares are next, and what has come of those that were made.

    Attributes:
        settle: whether it may stop early.
        count: into how many shares a round goes at most.
        head: of the pass, once a round is there.
    """

    settle: bool
    count: int
    head: PassInfo | None = None
    _stats: list[TensorStats] = field(default_factory=list)
    _used: list[int] = field(default_factory=list)
    _outliers: Outliers = field(default_factory=lambda: Outliers(0))
    _settling: Settling = field(default_factory=lambda: Settling(0))
    _blank: list[tuple[int, str]] = field(default_factory=list)
    _rows: NDArray[np.int64] | None = None
    _even: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, bool))

    @property
    def used(self) -> int:
        """How many samples were run so far."""
        return len(self._used)

    def shares(self) -> list[Shard]:
        """The shares of the next round."""
        if not self.settle:
            return [Shard(0, None, part, self.count) for part in range(self.count)]
        start, total = len(self._used), len(self.head.digests) if self.head is not None else _UNKNOWN
        stop = next(samples for samples in stops(total) if samples > start)
        count = max(1, min(self.count, (stop - start) // LEAST))
        return [Shard(start, stop, part, count) for part in range(count)]

    def add(self, parts: Sequence[ShardResult]) -> Statistics | None:
        """Take in a round; the statistics where the pass has ended. Raises ValueError where samples have changed."""
        head = self.head = self.head or next(part.head for part in parts if part.head is not None)
        n = len(head.names)
        if not self._stats:
            self._stats, self._even = [NO_STATS] * n, np.ones(n, bool)
            self._outliers, self._settling = Outliers(n), Settling(n)
        for part in parts:
            known = [head.digests[i] for i in part.numbers if i < len(head.digests)]
            if known != list(part.digests):
                raise ValueError("the samples were others in another process")
            if part.numbers:
                self._merge(part)
        settled = False
        in_order = sorted((place, n, i) for n, part in enumerate(parts) for i, place in enumerate(part.places))
        for _, n, i in in_order:
            settled = self.settle and self._settling.add(parts[n].seen[i])
            self._used.append(parts[n].numbers[i])
        if not settled and len(self._used) < len(head.digests):
            return None
        return self._whole(head)

    def _merge(self, part: ShardResult) -> None:
        self._stats = [merge(mine, other) for mine, other in zip(self._stats, part.stats, strict=True)]
        self._outliers = self._outliers.merged(part.outliers)
        self._blank += part.blank
        self._rows = part.rows if self._rows is None else self._rows
        self._even &= part.even & (part.rows == self._rows)

    def _whole(self, head: PassInfo) -> Statistics:
        # A part without an element of a tensor is neutral, but a single pass would have met its other number of rows.
        stats = [
            one if even else replace(one, row_lows=(), row_highs=())
            for one, even in zip(self._stats, self._even.tolist(), strict=True)
        ]
        blank = [name for _, name in sorted(self._blank)]
        notes = notes_of(self._outliers, blank, head.names, len(self._used), len(head.digests))
        of = tuple(sorted({head.digests[i] for i in self._used}))
        tensors = dict(zip(head.names, stats, strict=True))
        return replace(head.statistics, tensors=tensors, samples=of, notes=(*notes, *head.statistics.notes))


def _without_picks(seen: Glimpse) -> Glimpse:
    """What `Settling` looks at."""
    none = np.zeros(0, np.float32)
    return Glimpse(seen.sizes, np.zeros_like(seen.picked), seen.rows, none, seen.bottoms, seen.tops)
