"""Count what a user would count in outputs of a known kind: equal labels, masks, lines of text, detections.

An output that cannot be told for sure has no count. No count hides an error: the SQNR of every output is reported and
judged as well.

| kind | which outputs | what is counted |
|---|---|---|
| decisions | a sigmoid, one value a sample or step | values on the same side of 0.5 |
| labels | a sigmoid of rank 2 | values above 0.5 in both models, of those above it in either |
| mask | a sigmoid of rank 3 or more, or one that is on in runs | the same: intersection over union |
| segmentation | [batch, classes, height, width] | places of every class but the most frequent one: the same |
| sequences | scores [batch, steps, classes] with a blank (CTC), or [steps, 1, classes], or an arg max | equal lines |
| boxes | boxes and scores of a detector (see `onnxshot.comparison.box_matches`) | detections that the other one has |

Sigmoids count only if most of their values are near 0 or 1: coordinates and depths are not decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxshot.comparison.box_matches import pictures, shared, whole_heads

Arrays = Mapping[str, NDArray[Any]]

DECISIONS, LABELS, MASK, SEGMENTATION, SEQUENCES, BOXES = (
    "decisions", "labels", "mask", "segmentation", "sequences", "boxes",
)  # fmt: skip
CLASSES, PICKS = "classes", "picks"
"""The kinds that `onnxshot.comparison.class_scores` and `onnxshot.comparison.ordering_nodes` count."""

_SIGMOIDS = ("Sigmoid", "HardSigmoid")
_RESIZES = ("Resize", "Upsample")
_MIDDLE = 0.25  # distance from 0.5 within which a sigmoid is undecided
_UNDECIDED = 1 / 3  # share of undecided values from which a sigmoid is no decision
_RUN = 2.0  # mean length of a run of values that are on, from which it is a stretch, not labels
_TIE = 2.0**-11  # step of float16: closer to the threshold is a tie
_OFF = 1e-2  # tolerance of a sum of probabilities, also in float16
_FEWEST_CLASSES = 4  # of scores without a softmax: two may be a flow, three a picture
_ALPHABET = 11  # ten digits and the blank
_BLANKS = 0.25  # share of steps that are blank at least, if there is a blank


@dataclass(frozen=True, slots=True)
class Match:
    """What both models have in common in one output.

    Attributes:
        kind: one of the kinds above, or `classes` or `picks`.
        same: number of equal cases.
        of: number of cases, 1 or more.
    """

    kind: str
    same: int
    of: int

    @property
    def share(self) -> float:
        """Share of equal cases, 0..1."""
        return self.same / self.of


class _Counter(Protocol):
    def add(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None: ...

    @property
    def match(self) -> Match | None: ...


@dataclass(slots=True)
class Matches:
    """Counts over all samples, by output.

    Attributes:
        makers: operator that makes each output (see `onnxshot.comparison.class_scores.makers_of`).
        left_out: outputs that are not looked at.
    """

    makers: Mapping[str, str]
    left_out: Collection[str] = ()
    _counters: dict[str, _Counter] | None = field(init=False, default=None)
    _heads: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _boxes: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)

    def add(self, wanted: Arrays, got: Arrays) -> None:
        """Add the outputs of both models on one sample. The first sample shows which kinds they are."""
        if self._counters is None:
            known = {name: one for name, one in wanted.items() if name not in self.left_out}
            self._counters = {n: c for n, one in known.items() if (c := _counter(one, self.makers.get(n, "")))}
            self._heads = whole_heads(known)
        for name, counter in self._counters.items():
            if name in wanted:
                other = got.get(name)
                counter.add(wanted[name], other if other is not None and other.shape == wanted[name].shape else None)
        for name, parts in self._heads.items():
            pairs = [(wanted[part], got[part]) for part in parts if part in wanted and part in got]
            if len(pairs) < len(parts) or any(one.ndim != 3 or one.shape != other.shape for one, other in pairs):
                continue
            before = self._boxes.get(name, (0, 0))
            sides = (pictures(tuple(pair[side] for pair in pairs)) for side in (0, 1))
            for one, other in zip(*sides, strict=True):
                same, of = shared(one, other)
                before = before[0] + same, before[1] + of
            self._boxes[name] = before

    def found(self) -> dict[str, Match]:
        """The counts by output; none of outputs of another kind, or without a single case."""
        counters = self._counters or {}
        found = {name: match for name, counter in counters.items() if (match := counter.match) is not None}
        return found | {name: Match(BOXES, *counts) for name, counts in self._boxes.items() if counts[1]}


def _counter(values: NDArray[Any], maker: str) -> _Counter | None:
    """What counts in an output whose values are like these; None if its kind is not known."""
    if values.dtype.kind in "iu":
        return _Lines(coded=True) if maker == "ArgMax" and values.ndim == 2 and values.shape[1] > 1 else None
    if values.dtype.kind != "f" or not values.size:
        return None
    if maker in _SIGMOIDS:
        return _Switches()
    if values.ndim == 4 and values.shape[1] > 1:
        resized = maker in _RESIZES and values.shape[1] >= _FEWEST_CLASSES
        return _Regions() if resized or _is_distribution(values, 1) else None
    if values.ndim == 3 and values.shape[-1] >= _ALPHABET and max(values.shape[:2]) > 1:
        return _Lines() if maker == "linear" or _is_distribution(values, -1) else None
    return None


def _is_distribution(values: NDArray[Any], axis: int) -> bool:
    """Whether values along an axis are probabilities, or their logarithms."""
    with np.errstate(all="ignore"):
        soft = bool(np.min(values) >= 0) and bool((np.abs(values.sum(axis=axis, dtype=np.float64) - 1) < _OFF).all())
        if soft or not np.max(values) <= 0:
            return soft
        sums = np.exp(values.astype(np.float64)).sum(axis=axis)
    return bool((np.abs(sums - 1) < _OFF).all())


@dataclass(slots=True)
class _Switches:
    """Values of a sigmoid, which are on above 0.5."""

    rank: int = 0
    width: int = 0
    values: int = 0
    undecided: int = 0
    decided: int = 0
    equal: int = 0
    both: int = 0
    either: int = 0
    on: int = 0
    adjacent: int = 0  # values that are on behind one that is on

    def add(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None:
        self.rank, self.width = wanted.ndim, wanted.shape[-1] if wanted.ndim else 1
        away = np.abs(wanted - 0.5)
        self.values += wanted.size
        self.undecided += int(np.count_nonzero(away < _MIDDLE))
        clear, on = away > _TIE, wanted > 0.5
        other = ~on if got is None else got > 0.5
        self.on += int(np.count_nonzero(on))
        self.adjacent += int(np.count_nonzero(on[..., 1:] & on[..., :-1])) if on.ndim else 0
        self.decided += int(np.count_nonzero(clear))
        self.equal += int(np.count_nonzero((on == other) & clear))
        self.both += int(np.count_nonzero(on & other))
        self.either += int(np.count_nonzero(on if got is None else on | other))

    @property
    def match(self) -> Match | None:
        if self.undecided > _UNDECIDED * self.values:
            return None
        if self.rank < 2 or (self.rank == 2 and self.width == 1):
            return Match(DECISIONS, self.equal, self.decided) if self.decided else None
        stretches = self.rank > 2 or self.on >= _RUN * max(self.on - self.adjacent, 1)
        return Match(MASK if stretches else LABELS, self.both, self.either) if self.either else None


@dataclass(slots=True)
class _Regions:
    """Places that belong to one of several classes, along axis 1."""

    counts: NDArray[np.int64] | None = None  # [3, classes]: same, of the float model, of the candidate

    def add(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None:
        classes = wanted.shape[1]
        if self.counts is None:
            self.counts = np.zeros((3, classes), np.int64)
        if self.counts.shape[1] != classes:
            return
        mine = wanted.argmax(axis=1).reshape(-1)
        other = mine if got is None else got.argmax(axis=1).reshape(-1)
        same = mine[:0] if got is None else mine[mine == other]
        self.counts += np.stack([np.bincount(part, minlength=classes) for part in (same, mine, other)])

    @property
    def match(self) -> Match | None:
        if self.counts is None:
            return None
        same, mine, other = self.counts
        seen = np.flatnonzero(mine)
        counted = np.ones(len(mine), np.bool_)
        counted[mine.argmax()] = len(seen) < 2  # the background does not count, unless there is nothing else
        union = int((mine + other - same)[counted].sum())
        return Match(SEGMENTATION, int(same[counted].sum()), union) if union else None


@dataclass(slots=True)
class _Lines:
    """Sequences that are read as CTC reads them: repeated classes count once, and blanks not at all.

    The blank is the first or the last class, whichever is more frequent.
    """

    coded: bool = False  # the output holds classes already
    steps: int = 0
    blanks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    same: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    lines: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))

    def add(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None:
        last = -1 if self.coded else wanted.shape[-1] - 1
        mine = self._rows(wanted)
        other = [None] * len(mine) if got is None else self._rows(got)
        for one, two in zip(mine, other, strict=True):
            self.steps += len(one)
            for i, blank in enumerate((0, last)):
                self.blanks[i] += np.count_nonzero(one == blank)
                read = _read(one, blank), None if two is None else _read(two, blank)
                self.lines[i] += bool(read[0] or read[1])
                self.same[i] += bool(read[0]) and read[0] == read[1]

    def _rows(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        if self.coded:
            return list(values)
        found = values.argmax(axis=-1)
        return list(found.T if found.shape[1] == 1 else found)

    @property
    def match(self) -> Match | None:
        best = int(self.blanks.argmax())
        if self.blanks[best] < _BLANKS * self.steps or not self.lines[best]:
            return None
        return Match(SEQUENCES, int(self.same[best]), int(self.lines[best]))


def _read(row: NDArray[Any], blank: int) -> tuple[int, ...]:
    changes = np.flatnonzero(np.diff(row, prepend=row[0] + 1))
    return tuple(int(one) for one in row[changes] if one != blank)
