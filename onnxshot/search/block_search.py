"""Bits and blocks per layer under a goal, for weights in blocks: which layers need finer blocks, 8 bits, or float.

1. Group the layers by their place in the network (`layer_groups`).
2. Measure what the outputs lose when one group alone is at the lowest level and everything else in float. Errors of
   groups are independent, so that their losses add up.
3. At higher levels, the loss falls as the rounding error of the weights does. What the lowest level loses by 8-bit
   activations does not fall: where all layers in 8 bits lose a notable share, groups are measured at 8 bits too.
4. Raise groups level by level, the most loss saved per byte first. This gives one path from the smallest file to the
   most accurate one.
5. Under a limit of size, go as far as it allows. For a minimum accuracy, bisect the path for the smallest file that
   reaches it on held-out samples. Candidates are rounded without data. One is also made by a full run of `quantize`,
   which rounds with data; the bisection then goes on to where the others reach the goal if they gain as much.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxshot.delivery.record import stamp
from onnxshot.graph import Constant, Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.save import write
from onnxshot.passes.tie_weights import ties_of
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.search.block_levels import (
    FLOAT_RULE,
    Level,
    Rule,
    ladder,
    layers_of,
    level_rules,
    plain_bits,
    said,
    steps,
    stored_at,
)
from onnxshot.search.goal import Goal, Judge, Measured, Outcome
from onnxshot.search.group_losses import GroupLosses, OutOfTime
from onnxshot.search.layer_groups import layer_groups
from onnxshot.search.workbench import Workbench

_FITTED = 3  # times that a candidate is made smaller because its file is larger than was computed
_GAIN_DB = 0.1  # by which a full run must be more accurate than rounding without data, to make others

Choice = tuple[int, ...]
"""A candidate: the level of each group, counted from the lowest."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A group of layers and the levels that it can have.

    Attributes:
        layers: pattern of each layer.
        levels: the smallest first.
    """

    layers: tuple[str, ...]
    levels: tuple[Level, ...]


@dataclass(slots=True)
class BlockSearch:
    """The search on one model. The attributes are those of `MixedPrecisionSearch`.

    Attributes:
        bench: holds the prepared model and its samples.
        goal: what a candidate must reach.
        judge: measures candidates on held-out samples.
        folder: where candidates are written.
        deadline: value of `time.perf_counter` at which the search ends.
        asked: the recipe as it was asked for.
        remake: makes the model of a recipe by a full run of `quantize`.
        seen: every candidate that was measured.
        out_of_time: whether the budget ended the search.
        groups: what can be chosen.
    """

    bench: Workbench
    goal: Goal
    judge: Judge
    folder: Path
    deadline: float
    asked: Recipe
    remake: Callable[[Recipe], Model]
    seen: dict[Choice, Measured] = field(default_factory=dict)
    out_of_time: bool = False
    groups: list[Choices] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)
    _places: dict[Choice, int] = field(default_factory=dict)
    _known_bytes: int = 0
    _remade: int = 0

    def find(self) -> Outcome:
        """Return the best candidate found before the deadline, as a recipe."""
        chosen = self.run()
        levels = self.levels(chosen)
        return Outcome(self.recipe(chosen), self.only_float(chosen), levels.get(said(FLOAT_RULE), 0), levels)

    def run(self) -> Choice:
        """Return the best candidate found before the deadline. The smallest is measured in any case."""
        self.asked = plain_bits(self.asked)
        self.groups = self._choices()
        self._path = list(steps([group.levels for group in self.groups]))
        try:
            smallest = self._at(0)
            self.measured(smallest)
            if self.goal.wants_accuracy:
                self._reach()
                self._remake()
            elif not self.goal.too_much(self.seen[smallest]):
                self._use_up()
        except OutOfTime:
            self.out_of_time = True
        return self.best()

    def best(self) -> Choice:
        """Return the smallest candidate that reaches the goal, or the one that comes closest.

        Under limits alone that is the most accurate one within them.
        """
        known = {c: found for c, found in self.seen.items() if not self._only_float(c)} or self.seen
        reached = [c for c, found in known.items() if not self.goal.missed(found)]
        if reached and self.goal.wants_accuracy:
            return min(reached, key=lambda c: (known[c].bytes, self._loss(c)))

        def close(choice: Choice) -> tuple[bool, bool, float]:
            found, lost = known[choice], self._loss(choice)
            within = not self.goal.too_much(found)
            return within, not self.goal.inaccurate(found), -lost if within else -found.bytes

        return max(reached or known, key=close)

    def recipe(self, choice: Choice) -> Recipe:
        """Return the recipe that makes a candidate.

        The level that most layers have is in the recipe itself, unless it has rules of its own; others are in `layers`.
        """
        rules: dict[str, Rule] = {
            pattern: dict(group.levels[at].rule)
            for group, at in zip(self.groups, choice, strict=True) for pattern in group.layers
        }  # fmt: skip
        common = Counter(tuple(rule.items()) for rule in rules.values() if "bits" in rule).most_common(1)
        whole: dict[str, Any] = dict(common[0][0]) if common and not self.asked.layers else {}
        own = {pattern: rule for pattern, rule in rules.items() if rule and rule != whole}
        return replace(self.asked, **whole, layers={**self.asked.layers, **own})

    def levels(self, choice: Choice) -> dict[str, int]:
        """Return how many layers have each level, in words."""
        held = Counter[str]()
        for group, at in zip(self.groups, choice, strict=True):
            held[said(group.levels[at].rule)] += len(group.layers)
        return dict(held.most_common())

    def only_float(self, chosen: Choice) -> dict[str, str]:
        """Say in words that only the float model reaches the goal; empty where that is not so."""
        if self._only_float(chosen):
            return {"quantized": "nothing is quantized: that is the float model"}
        by_float = any(not self.goal.missed(found) for c, found in self.seen.items() if self._only_float(c))
        if by_float and self.goal.missed(self.seen[chosen]):
            return {"quantized": "only the float model, with nothing quantized, reaches the goal"}
        return {}

    def measured(self, choice: Choice) -> Measured:
        """Build a candidate and measure it on held-out samples, once."""
        if choice not in self.seen:
            if self.seen:
                self._in_time()
            recipe, path = self.recipe(choice), self.folder / "candidate.onnx"
            write(self._built(recipe), path)
            found = self.judge.measure(path, recipe.exclude)
            self.seen[choice] = replace(found, levels=self.levels(choice))
            self._known_bytes = found.bytes - self._weight_bytes(choice)
            self._show("candidates measured", len(self.seen))
        return self.seen[choice]

    # ------------------------------------------------------------------ what can be chosen

    def _choices(self) -> list[Choices]:
        """Group the layers, and measure what each group loses."""
        model = self.bench.prepared.model
        layers = layers_of(model, self._fitted(self.bench.plan_of(self.asked)), self.asked)
        same = {second: first for first, second, _ in ties_of(model, model.tied) if first is not second}
        plans = [
            (rule, self._fitted(self.bench.plan_of(self._everywhere(rule, layers.values()))))
            for rule in level_rules(self.bench.prepared.target, self.asked)
        ]
        slots = {label: w.slot for _, plan in plans for label, w in plan.weights.items()}
        held = {n: w for n in layers if isinstance(w := n.inputs[slots[n.label]], Constant)}
        groups = layer_groups(model, held, same)
        stored = [stored_at(group, plans, same) for group in groups]
        measuring = GroupLosses(self.bench, groups, stored, plans, self._rewritten, self._in_time, self._show)
        losses = measuring.laws()
        self.out_of_time = measuring.out_of_time
        return [
            Choices(tuple(layers[n] for n in group), ladder(levels, loss))
            for group, levels, loss in zip(groups, stored, losses, strict=True)
        ]

    def _everywhere(self, rule: Rule, patterns: Iterable[str]) -> Recipe:
        """The recipe with all layers at one level."""
        return replace(self.asked, layers={**self.asked.layers, **{pattern: dict(rule) for pattern in patterns}})

    # ------------------------------------------------------------------ steps

    def _reach(self) -> None:
        """Bisect the path for the smallest candidate that is accurate enough."""
        low, high = 0, len(self._path)
        while high > 0 and self._only_float(self._at(high)):
            high -= 1  # the float model is no candidate
        if not self.goal.inaccurate(self.measured(self._at(0))):
            return
        if self.goal.inaccurate(self.measured(self._at(high))):
            self.measured(self._at(len(self._path)))
            return
        while high - low > 1:
            middle = (low + high) // 2
            if self.goal.inaccurate(self.measured(self._at(middle))):
                low = middle
            else:
                high = middle
        if self.goal.max_size is not None and self.goal.too_much(self.seen[self._at(high)]):
            self._use_up()

    def _remake(self) -> None:
        """Make smaller candidates by full runs of `quantize`, where these are more accurate."""
        reached = self._places.get(best := self.best(), 0)
        if not reached or self.goal.missed(self.seen[best]) or self.asked.effort == "fast":
            return
        full = self._made_anew(best)
        gain = full.sqnr_db - self.seen[best].sqnr_db
        if gain < _GAIN_DB:
            return
        share = 10 ** (-gain / 10)

        def hoped(count: int) -> Measured:
            found = self.measured(self._at(count))
            others = {name: getattr(found, name) for name in ("drop", "perplexity_rise")}
            scaled = {name: value * share for name, value in others.items() if value is not None and value > 0}
            return replace(found, sqnr_db=found.sqnr_db + gain, **scaled)

        low, high = -1, reached
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.goal.inaccurate(hoped(middle)) else (low, middle)
        for count in (high, (high + reached) // 2):
            if count == reached:
                return
            found = self._made_anew(self._at(count))
            if not self.goal.missed(found):
                self.seen[self._at(count)] = found
                return

    def _made_anew(self, choice: Choice) -> Measured:
        """Measure what a full run makes of a candidate."""
        self._in_time()
        recipe, path = self.recipe(choice), self.folder / "candidate.onnx"
        write(self.remake(recipe), path)
        self._remade += 1
        self._show("candidates made anew", self._remade)
        return replace(self.judge.measure(path, recipe.exclude), levels=self.levels(choice))

    def _use_up(self) -> None:
        """Measure the most accurate candidate within the limits."""
        if self.goal.max_size is not None:
            room = self.goal.max_size * 1e6
            for _ in range(_FITTED):
                choice = self._within(room)
                over = self.measured(choice).bytes - self.goal.max_size * 1e6
                if over <= 0:
                    break
                room -= over
            if not self.goal.too_much(self.seen[choice]):
                return
        low, high = 0, len(self._path)
        while high - low > 1:
            middle = (low + high) // 2
            if self.goal.too_much(self.measured(self._at(middle))):
                high = middle
            else:
                low = middle

    def _at(self, count: int) -> Choice:
        """The candidate after some steps of the path."""
        taken = Counter(self._path[:count])
        choice = tuple(taken[i] for i in range(len(self.groups)))
        self._places[choice] = count
        return choice

    def _within(self, room: float) -> Choice:
        """Take steps of the path as long as the file stays within a size; of those that do not fit, later ones may."""
        levels = [0] * len(self.groups)
        size, full = self._known_bytes + self._weight_bytes(levels), set[int]()
        for i in self._path:
            ladder = self.groups[i].levels
            more = ladder[levels[i] + 1].bytes - ladder[levels[i]].bytes if i not in full else 0
            if i in full or size + more > room:
                full.add(i)
                continue
            size, levels[i] = size + more, levels[i] + 1
        return tuple(levels)

    # ------------------------------------------------------------------ small things

    def _weight_bytes(self, choice: Sequence[int]) -> int:
        return sum(group.levels[at].bytes for group, at in zip(self.groups, choice, strict=True))

    def _loss(self, choice: Choice) -> float:
        """The loss that is expected of a candidate."""
        return sum(group.levels[at].loss for group, at in zip(self.groups, choice, strict=True))

    def _only_float(self, choice: Choice) -> bool:
        """Whether nothing is quantized."""
        return all(
            group.levels[at].rule == FLOAT_RULE for group, at in zip(self.groups, choice, strict=True)
        ) and not self.asked.layers

    def _fitted(self, plan: Plan) -> Plan:
        """The plan with scales that are fitted to the weights, as the asked effort has them."""
        if self.asked.effort == "fast":
            return plan
        fitted = {name: replace(w, method="mse") for name, w in plan.weights.items() if w.in_blocks}
        return replace(plan, weights={**plan.weights, **fitted})

    def _rewritten(self, plan: Plan) -> Model:
        made = copy_of(self.bench.prepared.model)
        apply_plan(made, plan, self.asked)
        return made

    def _built(self, recipe: Recipe) -> Model:
        """The model of a recipe, rounded without data, stamped with its record."""
        prepared = self.bench.prepared
        plan = self._fitted(self.bench.plan_of(recipe))
        made = self._rewritten(plan)
        finish(made, prepared.target, recipe)
        stamp(made, prepared.record(recipe, plan, sampled=True))
        return made

    def _in_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTime

    def _show(self, what: str, done: int, total: int | None = None) -> None:
        progress = self.bench.prepared.settings.progress
        if progress is not None:
            bisected = 1 + math.ceil(math.log2(len(self._path) + 2))
            progress(what, done, total if total is not None else max(done, bisected))
