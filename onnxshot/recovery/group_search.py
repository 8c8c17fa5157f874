"""Search which groups of a plan take another form, so that the outputs reach a goal at the least cost in time.

1. Each group is quantized alone, in each form that it has. Noise of groups adds up, about: the sums predict every mix.
2. The cheapest mix that should reach the goal is found exactly, by the times of its kernels, and measured. If it falls
   short, the prediction is corrected by what was measured, and the next mix is tried.
3. Once the goal is reached, the group that costs most is split in two, until splitting brings nothing. Where no mix
   reaches it, the group in 8 bits with most noise is split.
4. Where trials measure on all samples, groups that the goal does not need return to the form they are planned in.

A group in another form also costs the changes between int8 and float around it, which the times of kernels do not hold.
Of mixes that take the same time, the most accurate one is chosen. The number of measurements is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from onnxshot.maths.sqnr import CAP_DB
from onnxshot.planning.groups import PlanGroup, halves
from onnxshot.planning.plan import FLOAT, STORED

Forms = frozenset[tuple[str, str]]
"""The nodes that leave the form they are planned in: (label, new form)."""

Moves = tuple[tuple[PlanGroup, str], ...]
"""Groups that leave the form they are planned in, and their new forms."""

SAME = 0.02
"""Relative difference in time that counts as none."""
BORDER = 0.005
"""What the changes around a group in another form take, as a share of the time of the model: a guess, and a low one.

Without it, groups would move for differences in time and noise that say nothing.
"""
_SPARE_DB = 0.5  # above the goal: with less, no group is returned
_SPLITTING = 0.6  # of the measurements, where groups return
_STATES = 512  # mixes of the first groups that are kept while the next one is added
_LEAST = 0.01  # of the noise with a group in 8 bits: what the difference of two measurements may say at least
_SAME_NOISE = 1.12  # half a dB
_STEP = 1.26  # one dB: by so much at least a prediction is corrected that was too good


class OutOfTime(Exception):
    """There is no time for another measurement. Raised between two of them, by `Trials`."""


class Trials(Protocol):
    """Measures groups in other forms."""

    def forms(self, group: PlanGroup) -> Sequence[str]:
        """The other forms that a group has, in float first."""

    def has_weights(self, group: PlanGroup) -> bool:
        """Whether a node of the group multiplies by a weight."""

    def none(self) -> float:
        """The noise of the outputs relative to their signal where all groups are in float."""

    def alone(self, moves: Iterable[tuple[PlanGroup, str]]) -> Iterator[float]:
        """Yield the noise of the outputs relative to their signal where this group alone is quantized, in this form.

        The empty form is the one that the group is planned in.
        """

    def milliseconds(self, group: PlanGroup, form: str) -> float:
        """How much more time a group takes in this form than in the one that it is planned in."""

    def together(self, forms: Forms) -> float:
        """SQNR in dB of the outputs with these nodes in other forms, and all others as planned."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of forms that was measured.

    Attributes:
        forms: what leaves its planned form.
        sqnr_db: SQNR in dB of the outputs.
        ms: predicted milliseconds over the plan; below 0 it is faster.
        groups: the groups that moved, and their forms.
    """

    forms: Forms
    sqnr_db: float
    ms: float
    groups: Moves = ()


@dataclass(frozen=True, slots=True)
class _Option:
    form: str
    ms: float
    noise: float


@dataclass(frozen=True, slots=True)
class _Predicted:
    """A mix of the first groups, as predicted.

    Attributes:
        ms: milliseconds over the plan.
        noise: relative to the signal.
        picks: the form of each group.
        computes: whether a node with a weight is left in 8 bits; else the mix is no result.
    """

    ms: float
    noise: float
    picks: tuple[str, ...]
    computes: bool

    @property
    def moved(self) -> int:
        return sum(map(bool, self.picks))

@dataclass(slots=True)
class GroupSearch:
    """A search on one plan.

    Attributes:
        trials: measures.
        total_ms: milliseconds of the model as planned.
        most: how many models are measured at most.
        returns: whether groups that the goal does not need return. Only where `Trials.together` measures on all
            samples: on a few, a goal that is just reached is missed on others.
        measured: how many were.
        out_of_time: whether the search ended early.
    """

    trials: Trials
    total_ms: float
    most: int
    returns: bool = False
    measured: int = 0
    out_of_time: bool = False
    _options: dict[PlanGroup, tuple[_Option, ...]] = field(default_factory=dict)
    _found: dict[Forms, Mix] = field(default_factory=dict)
    _items: list[PlanGroup] = field(default_factory=list)
    _ratio: float = 1.0
    _rest: float | None = None

    def find(self, groups: Sequence[PlanGroup], goal_db: float) -> list[Mix]:
        """Return the mixes found that reach the goal, the one to take first; empty where none does.

        A further call goes on with what is known, for another goal.
        """
        if not self._items:
            self._items = list(groups)
        try:
            self._search(goal_db)
        except OutOfTime:
            self.out_of_time = True
        reached = [mix for mix in self._found.values() if mix.sqnr_db >= goal_db]
        return sorted(reached, key=lambda mix: self._rank(mix, reached))

    @property
    def _to_split(self) -> float:
        """How many models are measured at most to split groups: what they return is measured with the rest."""
        return self.most * (_SPLITTING if self.returns else 1.0)

    def _search(self, goal_db: float) -> None:
        """Measure mixes until one reaches the goal and splitting groups brings nothing."""
        wanted = 10 ** (-goal_db / 10)
        if self._rest is None:
            self._rest = self.trials.none()
            self.measured += 1
        if self._rest > wanted:
            return
        while self._items and self.measured < self.most:
            self._measure_alone()
            front = self._front()
            if not front:
                break
            chosen = self._chosen(front, wanted)
            mix, new = self._mix(chosen)
            if mix.sqnr_db >= goal_db:
                if self.measured >= self._to_split or not self._split(chosen):
                    if self.returns:
                        self._return(mix, goal_db)
                    break
            elif not new and chosen.noise <= min(one.noise for one in front):  # no other mix has less
                if not self._split_noisiest(chosen):
                    break
            else:
                measured = 10 ** (-mix.sqnr_db / 10)
                own = max(measured - self._rest, 0.0)
                self._ratio = max(self._ratio * _STEP, own / max(chosen.noise, 1e-12))

    def _rank(self, mix: Mix, others: Sequence[Mix]) -> tuple[float, int, int]:
        """Sort key: time, where it differs; accuracy in whole dB; then how much is moved."""
        least = min(other.ms for other in others)
        same = mix.ms <= least + SAME * self.total_ms
        return (least if same else mix.ms), -round(min(mix.sqnr_db, CAP_DB)), len(mix.forms)

    def _measure_alone(self) -> None:
        """Measure the groups that are not measured yet."""
        new = [item for item in self._items if item not in self._options]
        moves = [(item, form) for item in new for form in ("", *self.trials.forms(item)[1:])]
        found = dict(zip(moves, self.trials.alone(moves), strict=True))
        self.measured += len(moves)
        for item in new:
            options = [_Option("", 0.0, self._own(found[item, ""]))]
            for number, form in enumerate(self.trials.forms(item)):
                noise = self._own(found[item, form]) if number else 0.0
                ms = self.trials.milliseconds(item, form) + BORDER * self.total_ms
                options.append(_Option(form, ms, noise))
            self._options[item] = tuple(options)

    def _own(self, noise: float) -> float:
        """The noise of a group by itself: without that of what is in no group."""
        return max(noise - (self._rest or 0.0), _LEAST * noise)

    def _chosen(self, front: Sequence[_Predicted], wanted: float) -> _Predicted:
        """The mix that should reach the noise at the least cost; else the one with the least noise."""
        enough = [one for one in front if one.noise * self._ratio + (self._rest or 0.0) <= wanted]
        if not enough:
            return min(front, key=lambda one: (one.noise, one.ms))
        limit = min(one.ms for one in enough) + SAME * self.total_ms
        as_fast = [one for one in enough if one.ms <= limit]
        least = min(one.noise for one in as_fast)
        return min((one for one in as_fast if one.noise <= least * _SAME_NOISE), key=lambda one: (one.moved, one.ms))

    def _front(self) -> list[_Predicted]:
        """The mixes that no other one beats in time and noise; without the one that has everything in float."""
        states = [_Predicted(0.0, 0.0, (), computes=False)]
        for item in self._items:
            weighted = self.trials.has_weights(item)
            grown = [
                _Predicted(
                    one.ms + option.ms, one.noise + option.noise, (*one.picks, option.form),
                    computes=one.computes or (weighted and option.form not in (FLOAT, STORED)),
                )
                for one in states
                for option in self._options[item]
            ]
            grown.sort(key=lambda one: (one.ms, one.noise))
            states = []
            for computes in (False, True):
                best: list[_Predicted] = []
                for one in grown:
                    if one.computes == computes and (not best or one.noise < best[-1].noise):
                        best.append(one)
                states += [*best[:: len(best) // _STATES + 1], best[-1]] if len(best) > _STATES else best
        return [one for one in states if one.computes]

    def _mix(self, chosen: _Predicted) -> tuple[Mix, bool]:
        """Measure a mix, once; and whether that was new."""
        return self._together(tuple((item, form) for item, form in zip(self._items, chosen.picks, strict=True) if form))

    def _together(self, moved: Moves) -> tuple[Mix, bool]:
        forms = frozenset((label, form) for item, form in moved for label in item.nodes)
        new = forms not in self._found
        if new:
            ms = sum(self._cost(item, form) for item, form in moved)
            self._found[forms] = Mix(forms, self.trials.together(forms), ms, moved)
            self.measured += 1
        # The same mix may have been found before its groups were split: what may return are the groups as they are now.
        self._found[forms] = replace(self._found[forms], groups=moved)
        return self._found[forms], new

    def _cost(self, item: PlanGroup, form: str) -> float:
        return next(option.ms for option in self._options[item] if option.form == form)

    def _return(self, mix: Mix, goal_db: float) -> None:
        """Return groups to the form they are planned in, the most expensive first, as far as the goal holds."""
        for one in sorted(mix.groups, key=lambda move: -self._cost(*move)):
            if self.measured >= self.most or mix.sqnr_db < goal_db + _SPARE_DB or self._cost(*one) <= 0:
                return
            fewer, _ = self._together(tuple(move for move in mix.groups if move != one))
            mix = fewer if fewer.sqnr_db >= goal_db else mix

    def _split(self, chosen: _Predicted) -> bool:
        """Split the moved group that costs most; False where none costs time."""
        costs = {}
        for item, form in zip(self._items, chosen.picks, strict=True):
            if form and len(item.nodes) > 1:
                costs[item] = self._cost(item, form)
        if not costs or max(costs.values()) <= SAME * self.total_ms:
            return False
        self._halve(max(costs, key=lambda one: costs[one]))
        return True

    def _split_noisiest(self, chosen: _Predicted) -> bool:
        """Split the group in 8 bits that has most noise; False where none can be split.

        A mix leaves something in 8 bits: where the only group with weights has too much noise, a part of it may do.
        """
        stays = {
            item: self._options[item][0].noise
            for item, form in zip(self._items, chosen.picks, strict=True)
            if not form and len(halves(item)) > 1
        }
        if stays:
            self._halve(max(stays, key=lambda one: stays[one]))
        return bool(stays)

    def _halve(self, item: PlanGroup) -> None:
        at = self._items.index(item)
        self._items[at : at + 1] = halves(item)
