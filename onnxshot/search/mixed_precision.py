"""Mixed precision under a goal: find which nodes go back to float by measuring candidates.

1. Build and measure the model with all nodes in int8.
2. If it is less accurate than the goal allows, look for the cheapest mix of forms of groups, by the time that they take
   (`recovery/group_search.py`): int8, float with weights in 8 bits, and, for products, scales at run time. Single nodes
   are looked at only where no mix of groups reaches the goal: steps 4 and 5.
3. If it is slower than the goal allows, first put those nodes back that are slower in int8 than in float.
4. Order the other nodes by their measured gain per cost. Bisect for the shortest prefix of that order that must go back
   to float, keep half of it, order the rest again, and repeat.
5. Try to return every node that is in float now to int8, one by one.
6. Accuracy recovery was chosen for all nodes in int8, and may choose differently with other nodes in float. So before
   cheaper candidates are rejected, make the most accurate of them with a full `quantize` run.
7. Time the best candidate again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from onnxshot.graph import Model
from onnxshot.graph.save import write
from onnxshot.maths.sqnr import CAP_DB
from onnxshot.planning.groups import PlanGroup
from onnxshot.planning.plan import FLOAT, STORED, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.group_search import BORDER, SAME, Forms, GroupSearch
from onnxshot.recovery.plan_trials import PlanTrials
from onnxshot.search.goal import TIMES, Goal, Judge, Measured, Outcome
from onnxshot.search.workbench import Workbench

_MOST_MODELS = 48  # that are measured to look for a mix of groups
_STEP_DB = 3.0  # by which the accuracy rises from mix to mix, where the goal is not in dB
_STEPS = 8
_NEAR_DB = 1.5  # what a full run may add to a candidate
_REMADE = 3  # candidates that are made by a full run at most: each takes as long as `quantize`


class _OutOfTime(Exception):
    """The time budget is spent. Raised between two measurements, never during one."""


@dataclass(slots=True)
class MixedPrecisionSearch:
    """The search on one model.

    A candidate is the set of units in float, each named by its pattern; or a mix of forms, each written "FORM PATTERN".

    Attributes:
        bench: builds candidates.
        goal: what a candidate must reach.
        judge: measures candidates on held-out samples.
        folder: where candidates are written.
        deadline: value of `time.perf_counter` at which the search ends.
        asked: the recipe as it was asked for.
        remake: makes the model of a recipe by a full run of `quantize`.
        seen: every candidate that was measured.
        empty: the candidates in which nothing is quantized: they are the float model.
        mixes: the candidates that are mixes of forms.
        remade: the candidates whose full run is more accurate than what the workbench builds.
        out_of_time: whether the budget ended the search.
    """

    bench: Workbench
    goal: Goal
    judge: Judge
    folder: Path
    deadline: float
    asked: Recipe
    remake: Callable[[Recipe], Model]
    seen: dict[frozenset[str], Measured] = field(default_factory=dict)
    empty: set[frozenset[str]] = field(default_factory=set)
    mixes: dict[frozenset[str], Forms] = field(default_factory=dict)
    remade: set[frozenset[str]] = field(default_factory=set)
    out_of_time: bool = False
    _priced: dict[str, float] = field(default_factory=dict)
    _times: dict[str, tuple[float, float]] = field(default_factory=dict)
    _alone: dict[str, float] = field(default_factory=dict)
    _trials: PlanTrials = field(init=False)

    def __post_init__(self) -> None:
        self._trials = self.bench.trials(self._mix_db, self._in_time)

    @property
    def _costs(self) -> dict[str, float]:
        """Cost of each unit in float, by pattern. Measured on first use."""
        self._priced = self._priced or _unit_costs(self.bench, self._latencies, by_size=self.goal.max_size is not None)
        return self._priced

    @property
    def _latencies(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of each unit in float and in int8, by pattern. Measured on first use."""
        self._times = self._times or self.bench.latencies()
        return self._times

    def find(self) -> Outcome:
        """Return the best candidate found before the deadline, as a recipe."""
        chosen = self.run()
        return Outcome(self.recipe(chosen) if chosen else self.asked, self.only_float(chosen), len(chosen))

    def run(self) -> frozenset[str]:
        """Return the best candidate found before the deadline. All int8 is measured in any case."""
        base = self.measured(frozenset())
        try:
            if self.goal.inaccurate(base) and not self._by_groups(base):
                self._put_back(until=lambda found: not self.goal.inaccurate(found), last=True)
                self._return_to_int8()
            first = self._fastest() if self.goal.too_slow(base) else frozenset[str]()
            limited = not self.goal.wants_accuracy or self.goal.missed(self.seen[self.best()])
            if limited and not self.goal.too_much(self.measured(first)):
                self._put_back(until=self.goal.too_much, last=False, kept=first)
            self._remake_nearest()
            self._confirm()
        except _OutOfTime:
            self.out_of_time = True
        return self.best()

    def recipe(self, floats: frozenset[str]) -> Recipe:
        """Return the recipe that makes a candidate; its patterns are in graph order."""
        if floats in self.mixes:
            base = self.asked if floats in self.remade else self.bench.recipe
            return self._trials.recipe_of(self.mixes[floats], base)
        patterns = tuple(u.pattern for u in self.bench.units if u.pattern in floats)
        return self._as_asked(patterns) if floats in self.remade else self.bench.without(patterns)

    def _as_asked(self, patterns: tuple[str, ...]) -> Recipe:
        """The requested recipe with these units excluded as well. Accuracy recovery is left to the full run."""
        return replace(self.asked, exclude=(*self.asked.exclude, *patterns))

    def measured(self, floats: frozenset[str]) -> Measured:
        """Build a candidate and measure it on held-out samples, once."""
        if floats not in self.seen:
            if self.seen:
                self._in_time()
            recipe, path = self.recipe(floats), self.folder / "candidate.onnx"
            plan = self.bench.plan_of(recipe)
            if not plan.stored and all(node.how == FLOAT for node in plan.nodes):
                self.empty.add(floats)
            write(self.bench.build(recipe), path)
            self.seen[floats] = self.judge.measure(path, self._moved(floats))
            self._show("candidates measured", len(self.seen))
        return self.seen[floats]

    def best(self) -> frozenset[str]:
        """Return the cheapest candidate that reaches the goal, or the one that comes closest.

        Of candidates that take the same time, the most accurate one is the cheapest.

        A candidate with nothing quantized is the float model, and counts only where there is no other.
        """
        known = {floats: found for floats, found in self.seen.items() if floats not in self.empty} or self.seen
        reached = [floats for floats, found in known.items() if not self.goal.missed(found)]
        if reached and self.goal.wants_accuracy:
            least = min(map(self._time, reached)) + SAME

            def cheap(floats: frozenset[str]) -> tuple[float, int, float, float]:
                db = self.seen[floats].sqnr_db
                same = self._time(floats) <= least
                return least if same else self._time(floats), -round(min(db, CAP_DB)), self._cost(floats), -db

            return min(reached, key=cheap)

        def close(floats: frozenset[str]) -> tuple[bool, bool, float, float]:
            found = self.seen[floats]
            slow = found.latency_ms if found.latency_ms is not None and self.goal.too_slow(found) else 0.0
            return not self.goal.too_much(found), not self.goal.inaccurate(found), -slow, found.sqnr_db

        return max(reached or known, key=close)

    def only_float(self, chosen: frozenset[str]) -> dict[str, str]:
        """Say in words that only the float model reaches the goal; empty where that is not so."""
        if chosen in self.empty:
            return {"quantized": "nothing is quantized: that is the float model"}
        by_float = any(not self.goal.missed(self.seen[floats]) for floats in self.empty)
        if by_float and self.goal.missed(self.seen[chosen]):
            return {"quantized": "only the float model, with nothing quantized, reaches the goal"}
        return {}

    # ------------------------------------------------------------------ steps

    def _by_groups(self, base: Measured) -> bool:
        """Measure mixes of groups, and return whether one is accurate enough.

        Where the goal is not in dB, mixes of rising accuracy are measured.
        """
        goal = self.goal.min_sqnr
        if not self._trials.groups():
            return False
        wanted = [] if goal is None else [goal]
        if self.goal.max_drop is not None or self.goal.max_perplexity_rise is not None:
            first = base.sqnr_db if goal is None else max(goal, base.sqnr_db)
            wanted += [first + _STEP_DB * step for step in range(1, _STEPS + 1)]
        self._trials.choose_samples()
        self._trials.settle(wanted[0])
        groups = self._trials.groups()
        search = GroupSearch(self._trials, sum(self._trials.times[""].values()), _MOST_MODELS, returns=True)
        for db in wanted:
            search.find(groups, db)
            if any(not self.goal.inaccurate(self.seen[mix]) for mix in self.mixes):
                return True
        return False

    def _mix_db(self, forms: Forms) -> float:
        """Measure a mix of forms, and return its SQNR in dB on held-out samples."""
        form_of, labels = dict(forms), self._trials.labels(forms)
        named = zip(labels, self._trials.patterns(forms), strict=True)
        key = frozenset(f"{form_of[label]} {pattern}" for label, pattern in named)
        if key:
            self.mixes[key] = forms
        return self.measured(key).sqnr_db

    def _moved(self, floats: frozenset[str]) -> tuple[str, ...]:
        """Patterns of what a candidate does not compute as planned, behind those that the recipe excludes."""
        if floats in self.mixes:
            return (*self.asked.exclude, *self._trials.patterns(self.mixes[floats]))
        return self.recipe(floats).exclude

    def _fastest(self) -> frozenset[str]:
        """Return the fastest of a few candidates: all int8, and nodes in float that are slower in int8."""
        slower = [p for p, (before, after) in self._latencies.items() if after > before]
        slower.sort(key=lambda p: self._latencies[p][0] - self._latencies[p][1])
        counts = [len(slower) >> halved for halved in range(len(slower).bit_length())]
        tried = [frozenset[str](), *(frozenset(slower[:count]) for count in counts)]
        return min(tried, key=lambda floats: self.measured(floats).latency_ms or 0.0)

    def _put_back(
        self, until: Callable[[Measured], bool], *, last: bool, kept: frozenset[str] = frozenset()
    ) -> None:
        """Put nodes back to float, the most useful first, until a condition holds.

        Args:
            until: the condition on a measured candidate.
            last: whether the first candidate that meets the condition is wanted, or the one before it.
            kept: units that are in float from the beginning.
        """
        if last and not until(self.measured(frozenset(self._costs))):
            return
        while not until(self.measured(kept)):
            found = []
            for order in self._orders(kept):
                length = self._bisect(kept, order, until)
                if length is None and last:
                    continue
                found.append(order[: len(order) if length is None else length if last else length - 1])
            if last:
                first = min(found, key=lambda part: self._cost(kept.union(part)), default=[])
            else:
                first = max(found, key=lambda part: self.measured(kept.union(part)).sqnr_db, default=[])
            if len(first) <= int(last):
                return
            kept = kept.union(first[: (len(first) + 1) // 2])

    def _bisect(self, kept: frozenset[str], order: list[str], until: Callable[[Measured], bool]) -> int | None:
        """Length of the shortest prefix of `order` that meets the condition on top of `kept`; None if none does."""
        if not order or not until(self.measured(kept.union(order))):
            return None
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            if until(self.measured(kept.union(order[:middle]))):
                high = middle
            else:
                low = middle
        return high

    def _orders(self, kept: frozenset[str]) -> Iterator[list[str]]:
        """Order the other units by gain per cost, once for each of two ways to measure the gain.

        First the noise of a node that is quantized alone: it ignores that the errors of neighbours may cancel. Then the
        gain of one node going back to float: it ignores what several nodes gain together.
        """
        left = {u.pattern: u for u in self.bench.units if u.pattern not in kept}
        if not self._alone:
            fine = self.bench.recipe.per_channel
            alone = ((p, self.bench.alone(u, per_channel=fine)) for p, u in left.items())
            found = self._tried(alone, "nodes alone in int8", len(left))
            self._alone = {p: 10 ** (-db / 10) for p, db in found.items()}
        yield sorted(left, key=lambda p: -self._alone.get(p, 0.0) / self._costs[p])
        fewer = ((p, self.bench.plan_of(self.recipe(kept.union([p] if p else [])))) for p in ("", *left))
        found = self._tried(fewer, "nodes back in float", len(left) + 1)
        yield sorted(left, key=lambda p: (found[""] - found[p]) / self._costs[p])

    def _tried(self, plans: Iterable[tuple[str, Plan | None]], what: str, count: int) -> dict[str, float]:
        """SQNR in dB on the calibration samples of each plan, by name; without those that are None."""
        names: list[str] = []
        found: dict[str, float] = {}

        def drawn() -> Iterator[Plan]:
            for name, plan in plans:
                if plan is not None:
                    names.append(name)
                    yield plan

        for db in self.bench.sqnrs(drawn()):
            found[names[len(found)]] = db
            self._show(what, len(found), count)
            self._in_time()
        return found

    def _return_to_int8(self) -> None:
        """Return to int8 what the goal does not need in float, the most expensive unit first."""
        kept = self.best()
        if self.goal.inaccurate(self.seen[kept]):
            return
        for pattern in sorted(kept, key=lambda p: (-self._costs[p], p)):
            if not self.goal.inaccurate(self.measured(kept - {pattern})):
                kept -= {pattern}

    def _remake_nearest(self) -> None:
        """Make cheaper candidates by a full run, if they nearly reach the accuracy; the cheapest first.

        Stops at the first that reaches the goal. A candidate keeps its full run where that is more accurate.
        """
        best = self.best()
        missed = bool(self.goal.missed(self.seen[best]))
        if not self.goal.wants_accuracy or not (best or missed):
            return
        others = [f for f in self.seen if f and f not in self.empty and self.goal.inaccurate(self.seen[f])]
        cheaper = [f for f in others if missed or self._time(f) < self._time(best) - SAME]
        if self.goal.min_sqnr is not None:
            cheaper = [f for f in cheaper if self.seen[f].sqnr_db > self.goal.min_sqnr - _NEAR_DB]
        nearest = sorted(cheaper, key=lambda f: _accuracy(self.seen[f]), reverse=True)[:_REMADE]
        for floats in sorted(nearest, key=lambda f: (self._cost(f), sorted(f))):
            self._in_time()
            self.remade.add(floats)
            path = self._made(floats)
            found = self.judge.measure(path, self._moved(floats))
            if _accuracy(found) > _accuracy(self.seen[floats]):
                self.seen[floats] = found
            else:
                self.remade.remove(floats)
            self._show("candidates made anew", len(self.remade))
            if not self.goal.missed(self.seen[floats]):
                return

    def _made(self, floats: frozenset[str]) -> Path:
        """Write a candidate and return its path; the next candidate replaces the file."""
        path, recipe = self.folder / "candidate.onnx", self.recipe(floats)
        write(self.remake(recipe) if floats in self.remade else self.bench.build(recipe), path)
        return path

    def _confirm(self) -> None:
        """Time the best candidate again until the best one is confirmed: the best of many timings is partly luck."""
        sure: set[frozenset[str]] = set()
        while self.goal.max_latency is not None and (best := self.best()) not in sure:
            self._in_time()
            path = self._made(best)
            self.seen[best] = replace(self.seen[best], latency_ms=self.judge.latency_ms(path, times=TIMES))
            sure.add(best)

    # ------------------------------------------------------------------ small things

    def _cost(self, floats: frozenset[str]) -> float:
        if floats in self.mixes:
            return self._time(floats) + len(floats) / max(len(self.bench.units), 1)
        return sum(self._costs[p] for p in sorted(floats))

    def _time(self, floats: frozenset[str]) -> float:
        """What a candidate takes longer than all int8, as a share; consecutive nodes have one border."""
        times, trials = self._trials.times, self._trials
        by_pattern = {u.pattern: u.planned.node for u in self.bench.units}
        forms = self.mixes[floats] if floats in self.mixes else {(by_pattern[p], STORED) for p in floats}
        known = [(label, form) for label, form in forms if label in times[""]]
        whole, moved = sum(times[""].values()) or 1.0, {label for label, _ in known}
        runs = sum(b in moved and a not in moved for a, b in pairwise(["", *times[""]]))
        more = sum(trials.milliseconds(PlanGroup("node", (label,)), form) for label, form in sorted(known))
        return more / whole + BORDER * runs

    def _in_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise _OutOfTime

    def _show(self, what: str, done: int, total: int | None = None) -> None:
        progress = self.bench.prepared.settings.progress
        if progress is not None:
            progress(what, done, total if total is not None else max(done, len(self.bench.units)))


def _accuracy(found: Measured) -> tuple[float, float]:
    """Accuracy as a sort key, higher is better: the evaluated score, then the SQNR."""
    return -(found.drop or 0.0), found.sqnr_db


def _unit_costs(bench: Workbench, times: Mapping[str, tuple[float, float]], *, by_size: bool) -> dict[str, float]:
    """Cost of each unit in float, by pattern.

    The sum of its share of the time that int8 saves, an equal share for its Q/DQ pairs, and, if the goal limits the
    size, its share of the weight bytes.
    """
    units = bench.units
    saved = {p: max(before - after, 0.0) for p, (before, after) in times.items()}
    whole, stored = sum(saved.values()) or 1.0, sum(u.weight_bytes for u in units) or 1
    return {
        u.pattern: saved[u.pattern] / whole + 1 / len(units) + (u.weight_bytes / stored if by_size else 0.0)
        for u in units
    }
