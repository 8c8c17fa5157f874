"""Look at a plan before it is final: what int8 costs the outputs, group by group, and what it saves.

The error of a tensor does not tell whether it matters. So groups of nodes (`planning/groups.py`) are put back to float
one at a time, on a few samples, and what the outputs gain is measured. Groups that cause much of the error are split,
to find the part that causes it, and joined. What this costs in time follows from the times of kernels, where those
were measured. The few candidates that seem to gain more than they cost are timed in turns with the plan as it is. One
is kept if it does.

Weights of a group in float are stored in 8 bits where the target has such a form, so that the file stays small. Those
of a front end are not: they are often a fixed transform, whose small coefficients count behind a Log. Nor are those
of which only the weights were quantized.

The number of inferences that groups are tried in is bounded by that of the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from onnxshot import memory
from onnxshot.errors import OnnxshotError
from onnxshot.execution.candidate_race import CandidateError, Judge, candidate_of
from onnxshot.execution.placement_cache import Decision
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import by_label
from onnxshot.planning.groups import PlanGroup, halves, plan_groups
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, STORED, WEIGHTS, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.advice import FLOOR_DB
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.rewriting.back_to_float import back_to_float
from onnxshot.runtimes.ort_bench import NOISE, bench
from onnxshot.runtimes.ort_runtime import Feed, Runnable
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.settings import Settings
from onnxshot.targets.base import Target

ENOUGH_DB = 30.0
"""SQNR in dB of a typical sample from which nothing is looked for: the outputs are as good as those of most models."""
_SAMPLES = 4  # a candidate is measured on; half as many where few were calibrated on
_MANY = 32  # calibrated samples
_GROUPS = 8  # are measured at first
_LEAST_SHARE = 0.25  # of the noise that a group must cause to be looked into: about 1.2 dB
_PART = 0.8  # of its group's gain in dB that a half must have to be taken alone
_SPLIT, _TIMES = 1, 3  # groups that are split at most, those that cause most of the noise first, and how often
_LEAST_GAIN_DB, _SAME_DB = 1.0, 0.5
_DB_PER_PERCENT = 1.0  # least gain for each percent of time
_LOW_DB = 18.0  # below it, accuracy is scarce,
_LOW_DB_PER_PERCENT = 0.5  # and this gain is enough
_TIMED = 2  # candidates
_BORDERS = 0.8  # of the time by kernels: a rough estimate refuses only what is clearly too slow
_ROUNDS, _SECONDS = 16, 0.15  # of timing, at most
_FEWEST_RUNS = 48  # inferences of candidates that are allowed where samples are enough,
_RUNS_EACH, _FEWEST_OF_FEW = 4, 20  # else for each that was calibrated on, and in any case: each candidate is loaded,
_FEWEST_IN_PARTS = 16  # and of models that run in parts
_SHORTEST_MS = 0.1  # shorter runs are mostly overhead: time does not decide

_IN_WORDS = {FLOAT: "in float", STORED: "in float", DYNAMIC: "with scales at run time"}

Rules = Mapping[str, Mapping[str, Any]]


def most_runs(calibrated: int, *, in_parts: bool) -> int:
    """Inferences of candidates that are allowed after so many of the calibration."""
    if in_parts:
        return _FEWEST_IN_PARTS
    return max(calibrated, min(max(_RUNS_EACH * calibrated, _FEWEST_OF_FEW), _FEWEST_RUNS))


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found.

    Attributes:
        layers: rules for the recipe's `layers`, glob -> rule; empty where the plan stays as it is.
        rows: what was measured, for the report: `group`, `form`, `gain_db`, `microseconds` (None where it was not
            timed), `kept`.
        note: what came of it, in words; empty where nothing was looked for.
        inferences: how many samples were run on candidates.
    """

    layers: Rules = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()
    note: str = ""
    inferences: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """A group in another form, or several of them together."""

    groups: tuple[tuple[PlanGroup, str], ...]

    def joined(self, other: _Part) -> _Part:
        return _Part((*self.groups, *other.groups))

    @property
    def nodes(self) -> set[str]:
        return {label for group, _ in self.groups for label in group.nodes}


@dataclass(slots=True)
class Looker:
    """Looks at one plan.

    Attributes:
        model: the float model that the plan is for.
        plan: the plan, with scales.
        recipe: the recipe of the plan.
        planned: plans the model by another recipe, with scales from the same statistics.
        target: the target.
        judge: compares candidates with the given model.
        numbers: samples to measure on, best first; nothing was taken from them.
        calibrated: number of samples that were calibrated on.
        forced: labels of nodes that were asked for by name; they stay as they are.
        settings: threads.
        kernels: times of the kernels of the plan and of the float model, where they were measured.
    """

    model: Model
    plan: Plan
    recipe: Recipe
    planned: Callable[[Recipe], Plan]
    target: Target
    judge: Judge
    numbers: Sequence[int]
    calibrated: int
    forced: Set[str]
    settings: Settings
    kernels: Decision | None = None
    _patterns: dict[str, str] = field(init=False)
    _makes: dict[str, str] = field(init=False)
    _plain: LeanModel = field(init=False)
    _base: Runnable = field(init=False)
    _lean: LeanModel = field(init=False)  # the same
    _in_parts: bool = field(init=False)
    _others_to_see: Sequence[int] = field(init=False)
    _found: dict[_Part, CandidateError] = field(init=False, default_factory=dict)
    _times: dict[_Part, float] = field(init=False, default_factory=dict)
    _inferences: int = field(init=False, default=0)
    _base_ms: float = field(init=False, default=0.0)
    _float_time: float = field(init=False, default=1.0)
    _work: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._patterns = exact_patterns(self.model)
        named = ((node.label, [t.name for t in node.outputs if t.name]) for node in self.model.graph.nodes)
        self._makes = {label: names[0] for label, names in named if names}
        self._plain = LeanModel.of(self.model)
        self._base = candidate_of(self._rewritten(_Part(())))
        self._lean = LeanModel.of(self._base)
        self._in_parts = self._plain.weight_bytes > memory.part_bytes()
        few = self.calibrated < _MANY or self._in_parts
        count = _SAMPLES // 2 if few else _SAMPLES
        self._others_to_see = self.numbers[count : 3 * count]
        self.numbers = self.numbers[:count]
        if self.numbers and (self.kernels is None or not self.kernels.saved):
            work = by_label(sizes_on(self.model, self.judge.samples[self.numbers[0]].feed).work(self.model))
            self._work = {label: macs / (sum(work.values()) or 1) for label, macs in work.items()}

    def look(self) -> Look:
        """Measure, and return what is to be changed."""
        nothing = _Part(())
        if not self.numbers or not self._measured([nothing]):
            return Look()
        if self._db(nothing) >= ENOUGH_DB:
            return Look(inferences=self._inferences)
        found = plan_groups(self.model, self.plan, _GROUPS, stored=True)
        found = [replace(group, nodes=tuple(label for label in group.nodes if label in self._makes)) for group in found]
        groups = [group for group in found if group.nodes and self.forced.isdisjoint(group.nodes)]
        self._measured([self._part(group) for group in groups])
        if not self._causes():
            return Look({}, tuple(self._rows(nothing)), "", self._inferences)
        causes = sorted(self._causes(), key=self._share, reverse=True)
        causes = [*(self._narrowed(one) for one in causes[:_SPLIT]), *causes[_SPLIT:]]
        joined = [causes[0]] if causes else []
        for one in causes[1:]:
            joined.append(joined[-1].joined(one))
        may_pay = [one for one in joined[1:] if self._expected(one, self._most_gain) >= _LEAST_GAIN_DB]
        self._measured([*may_pay, *self._others(causes)])
        best = self._confirmed(self._best(nothing))
        return Look(
            self._rules(best) if best.groups else {}, tuple(self._rows(best)), self._note(best, nothing),
            self._inferences,
        )  # fmt: skip

    # ------------------------------------------------------------------ what is measured

    def _part(self, group: PlanGroup, form: str = "") -> _Part:
        alone = self.plan.labels(WEIGHTS) | self.plan.stored.keys()
        stores = group.kind != "front end" and not alone.issuperset(group.nodes)
        return _Part(((group, form or (STORED if stores else FLOAT)),))

    def _causes(self) -> list[_Part]:
        """The groups that cause much of the noise."""
        return [one for one in self._found if one.groups and self._share(one) >= _LEAST_SHARE]

    def _narrowed(self, one: _Part) -> _Part:
        """The half, the half of the half and so on of a group that has most of its gain."""
        ((group, _),) = one.groups
        for _ in range(_TIMES):
            parts = [self._part(half) for half in halves(group)]
            if not parts or not self._measured(parts):
                break
            best = max(parts, key=self._share)
            if self._gain(best) < _PART * self._gain(one):
                break
            one, ((group, _),) = best, best.groups
        return one

    def _others(self, causes: Iterable[_Part]) -> Iterator[_Part]:
        """The same groups with their products quantized at run time, where they were static."""
        how = {node.node: node for node in self.plan.nodes}
        for one in causes:
            ((group, _),) = one.groups
            products = [label for label in group.nodes if how[label].op in self.target.dynamic & {"MatMul", "Gemm"}]
            if products and all(how[label].how == STATIC for label in products):
                yield self._part(PlanGroup(group.kind, tuple(products)), DYNAMIC)

    def _measured(self, parts: Sequence[_Part]) -> bool:
        """Measure candidates that were not; False where the bound on inferences leaves out one of them."""
        new = [one for one in parts if one not in self._found]
        left = (most_runs(self.calibrated, in_parts=self._in_parts) - self._inferences) // len(self.numbers)
        pairs = [(one, self._quick(one)) for one in new[: max(left, 0)]]
        made = [(one, model) for one, model in pairs if model is not None]
        for (one, _), error in zip(made, self.judge.measure((m for _, m in made), self.numbers), strict=True):
            self._found[one] = error
            self._inferences += len(self.numbers)
        return all(one in self._found for one in parts)

    def _quick(self, one: _Part) -> Runnable | None:
        """A model that computes as the candidate, for measurements alone; None where it cannot be made."""
        if not one.groups:
            return self._base
        if any(form == DYNAMIC for _, form in one.groups):
            return candidate_of(self._rewritten(one)) if self._quantizes(one) else None
        static = [self._makes[label] for label in self.plan.labels(STATIC) if label in self._makes]
        makes = [self._makes[label] for label in one.nodes]
        made = back_to_float(self._lean, self._plain, makes, static)
        if made is None or isinstance(self._base, LeanModel):
            return made
        return bytes(made.to_proto().SerializeToString())

    def _rules(self, one: _Part) -> Rules:
        return {self._patterns[label]: {"mode": form} for group, form in one.groups for label in group.nodes}

    def _quantizes(self, one: _Part) -> bool:
        """Whether a plan can be made, in which anything else stays quantized."""
        try:
            plan = self.planned(self._recipe_of(one))
        except OnnxshotError:  # it would quantize a tensor that was not observed
            return False
        return bool(plan.stored) or any(node.how != FLOAT for node in plan.nodes)

    def _recipe_of(self, one: _Part) -> Recipe:
        return replace(self.recipe, layers={**self.recipe.layers, **self._rules(one)})

    def _rewritten(self, one: _Part) -> Model:
        recipe = self._recipe_of(one)
        made = copy_of(self.model)
        apply_plan(made, self.planned(recipe) if one.groups else self.plan, recipe)
        return made

    # ------------------------------------------------------------------ what it gains and costs

    def _db(self, one: _Part) -> float:
        """SQNR in dB of a typical sample, or of the worst output over all samples, whichever is lower."""
        return min(self._found[one].typical_db, self._found[one].worst_db)

    def _gain(self, one: _Part) -> float:
        return self._db(one) - self._db(_Part(()))

    def _share(self, one: _Part) -> float:
        """Share 0..1 of the noise that goes with this part; negative where noise is added."""
        return 1.0 - float(10 ** (-self._gain(one) / 10)) if one in self._found else 0.0

    @property
    def _most_gain(self) -> float:
        """Most dB that a candidate is credited with."""
        return ENOUGH_DB + 5.0 - self._db(_Part(()))

    def _worth(self, gain: float, percent: float) -> float:
        """dB of a gain beyond what its percent of time cost."""
        rate = _LOW_DB_PER_PERCENT if self._db(_Part(())) < _LOW_DB else _DB_PER_PERCENT
        return min(gain, self._most_gain) - rate * max(percent - 100 * NOISE, 0.0)

    def _expected(self, one: _Part, gain: float) -> float:
        """As `_worth`, with the time that the kernels took; without, as if int8 halved that of all products.

        Nothing is worth more time than the float model takes.
        """
        if self.kernels is not None and self.kernels.saved:
            percent = _BORDERS * self.kernels.percent(one.nodes)
            slower = percent > 100 * max(self.kernels.in_float / self.kernels.in_int8 - 1, 0.0)
            return -math.inf if slower else self._worth(gain, percent)
        return self._worth(gain, 100 * sum(self._work.get(label, 0.0) for label in one.nodes))

    def _best(self, nothing: _Part) -> _Part:
        """The candidate that gains most beyond what its time costs."""
        gains = {one: self._gain(one) for one in self._found if one.groups and self._gain(one) >= _LEAST_GAIN_DB}
        expected = {one: self._expected(one, gain) for one, gain in gains.items()}

        def pays(one: _Part, worth: float) -> bool:
            return worth >= _LEAST_GAIN_DB or (self._passes_floor(one) and worth > -math.inf)

        may_pay = sorted((one for one in gains if pays(one, expected[one])), key=expected.__getitem__)
        tried = list(islice(filter(self._quantizes, reversed(may_pay)), _TIMED))
        self._time(tried)
        found = {
            one: self._worth(self._gain(one), self._percent(one)) if one in self._times else expected[one]
            for one in tried
        }
        return max([one for one in tried if pays(one, found[one])], key=found.__getitem__, default=nothing)

    def _passes_floor(self, one: _Part) -> bool:
        """Whether the outputs are below the floor, and above it with this candidate: then any time of int8 is fine."""
        return self._db(_Part(())) < FLOOR_DB <= self._db(one)

    def _confirmed(self, best: _Part) -> _Part:
        """The candidate if it gains on other samples too, else the plan as it is: the best of many is partly luck."""
        if not best.groups or not self._others_to_see:
            return best
        made = (candidate_of(self._rewritten(one)) for one in (_Part(()), best))
        before, after = self.judge.measure(made, self._others_to_see)
        self._inferences += 2 * len(self._others_to_see)
        gain = after.typical_db - before.typical_db, after.worst_db - before.worst_db
        return best if max(gain) >= _LEAST_GAIN_DB and min(gain) >= -_SAME_DB else _Part(())

    def _percent(self, one: _Part) -> float:
        """Percent of time that a candidate takes more than the plan as it is; negative where it is faster.

        It costs more than it can gain where it gives up half of the factor by which int8 is faster than float; of
        outputs below the floor, where it gives up all of it.
        """
        if self._base_ms < _SHORTEST_MS:
            return 0.0
        most = max(self._float_time, 1.0)
        if self._db(_Part(())) >= FLOOR_DB:
            most = math.sqrt(most)
        slower = self._times[one] > most * (1 + NOISE)
        return math.inf if slower else 100 * (self._times[one] - 1)

    def _time(self, parts: Sequence[_Part]) -> None:
        """Time candidates, and the float model, in turns with the plan as it is, by CPU time where that is known.

        Other work on the machine changes CPU time least. Models in parts are not timed.
        """
        if not parts:
            return
        feeds: list[Feed] = [self.judge.samples[number].feed for number in self.numbers]
        built = [self._rewritten(one) for one in (_Part(()), *parts)]
        for one, error in zip(parts, self.judge.measure(map(candidate_of, built[1:]), self.numbers), strict=True):
            self._found[one] = error  # of what the planner really makes
        if self._in_parts or not self.target.runs_here:
            return
        for made in built:
            finish(made, self.target, self.recipe)
        models = [*map(LeanModel.of, built), self._plain]
        try:
            rows = bench(
                models, feeds, threads=self.settings.threads, rounds=_ROUNDS, seconds=_SECONDS, precision=NOISE
            )
        except OnnxshotError:
            return
        self._base_ms = rows[0].median_ms
        for one, row in zip(parts, rows[1:-1], strict=True):
            self._times[one] = 1 / (row.cpu_ratio or row.ratio)
        self._float_time = 1 / (rows[-1].cpu_ratio or rows[-1].ratio)

    # ------------------------------------------------------------------ what is told

    def _rows(self, best: _Part) -> Iterator[dict[str, Any]]:
        for one in self._found:
            if one.groups:
                names = " + ".join(f"{group}" for group, _ in one.groups)
                forms = " + ".join(dict.fromkeys(form for _, form in one.groups))
                micro = None if one not in self._times else 1e3 * self._base_ms * (self._times[one] - 1)
                yield {
                    "group": names, "form": forms, "nodes": len(one.nodes), "gain_db": self._gain(one),
                    "microseconds": micro, "kept": one == best,
                }  # fmt: skip

    def _note(self, best: _Part, nothing: _Part) -> str:
        if not best.groups:
            return ""
        names = " + ".join(f"{group}" for group, _ in best.groups)
        took = "" if best not in self._times else f", time {100 * (self._times[best] - 1):+.1f} %"
        form = " and ".join(dict.fromkeys(_IN_WORDS[form] for _, form in best.groups))
        return (
            f"{names}: {form}, as the outputs gain by it: {self._db(nothing):.1f} dB before, "
            f"{self._db(best):.1f} dB after, on {len(self.numbers)} samples{took}"
        )
