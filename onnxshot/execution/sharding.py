"""Split a calibration pass over several processes, with the same result to the bit as a single process.

Statistics merge exactly, in any order. When the ranges have settled depends on the order of the samples too, but only
through the extremes of each sample's rows. Shards return these per sample, and they are examined here in the order of a
single pass. A pass may only end at certain numbers of samples (`enough_samples.stops`). Therefore all shards up to the
next such number can run at once, and no sample is run that a single pass would not have run.
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
"""Fewest samples per shard if the pass may end soon: loading a model takes as long as about twenty samples."""

_UNKNOWN = 1 << 62  # number of samples before the first shard has reported it


@dataclass(frozen=True, slots=True)
class Shard:
    """The samples that one process observes: every count-th from place `start` to `stop` in the pass's order.

    Attributes:
        start: First place.
        stop: End, exclusive; None for all that follow.
        part: Which of `count` shards this is.
        count: Number of shards.
    """

    start: int = 0
    stop: int | None = None
    part: int = 0
    count: int = 1

    def of(self, order: Sequence[int]) -> list[tuple[int, int]]:
        """Place and index of each of its samples."""
        return list(enumerate(order))[self.start : self.stop][self.part :: self.count]


@dataclass(frozen=True, slots=True)
class PassInfo:
    """What the first process reports about the whole pass.

    Attributes:
        key: Key of the statistics in the cache.
        names: Observed tensors.
        digests: Digests of all samples.
        statistics: Statistics without tensors and samples, to be filled in.
    """

    key: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    statistics: Statistics


@dataclass(frozen=True)
class ShardResult:
    """The result of one shard.

    Attributes:
        stats: Statistics of each tensor.
        places: Places of its samples in the order of the pass.
        numbers: Indices of its samples.
        digests: Digests of its samples.
        outliers: Outliers among its samples.
        blank: Place and name of samples with a single value throughout.
        rows: [n] number of rows of each tensor in its first sample.
        even: [n] whether all its samples have that number of rows.
        seen: Extremes of each sample, if the pass may stop early.
        head: Facts about the whole pass; only in the first shard.
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
    """Observe the samples of one shard.

    Args:
        watch: The pass.
        share: Which of its samples.
        recipe: What the user asked for, part of the cache key.
        settings: Threads and device.

    Raises:
        CalibrationError: A tensor is NaN or infinite.
        ModelError: The model does not run on a sample.
    """
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
    """A pass in progress: which shards come next, and the merged results so far.

    Attributes:
        settle: Whether it may stop early.
        count: Most shards per round.
        head: Facts about the pass, once the first round is done.
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
        """Number of samples run so far."""
        return len(self._used)

    def shares(self) -> list[Shard]:
        """The shards of the next round."""
        if not self.settle:
            return [Shard(0, None, part, self.count) for part in range(self.count)]
        start, total = len(self._used), len(self.head.digests) if self.head is not None else _UNKNOWN
        stop = next(samples for samples in stops(total) if samples > start)
        count = max(1, min(self.count, (stop - start) // LEAST))
        return [Shard(start, stop, part, count) for part in range(count)]

    def add(self, parts: Sequence[ShardResult]) -> Statistics | None:
        """Merge the results of a round.

        Returns:
            The statistics if the pass has ended, else None.

        Raises:
            ValueError: Another process saw other samples.
        """
        head = self.head = self.head or next(part.head for part in parts if part.head is not None)
        n = len(head.names)
        if not self._stats:
            self._stats, self._even = [NO_STATS] * n, np.ones(n, bool)
            self._outliers, self._settling = Outliers(n), Settling(n)
        for part in parts:
            known = [head.digests[i] for i in part.numbers if i < len(head.digests)]
            if known != list(part.digests):
                raise ValueError("another process saw other samples")
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
        # Statistics of an empty tensor merge as neutral, but a single pass would have seen its other number of rows.
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
    """The part of a glimpse that `Settling` needs."""
    none = np.zeros(0, np.float32)
    return Glimpse(seen.sizes, np.zeros_like(seen.picked), seen.rows, none, seen.bottoms, seen.tops)
