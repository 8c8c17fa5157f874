"""Measure what groups of a plan cost the outputs, and how long they take, in other forms than they are planned in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxshot.errors import UsageError
from onnxshot.execution.candidate_race import Judge, candidate_of
from onnxshot.execution.collect import collect
from onnxshot.graph import Model, Node
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.sqnr import CAP_DB
from onnxshot.planning.groups import PlanGroup, plan_groups
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.node_mode import elements
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, DYNAMIC16, FLOAT, STATIC, STORED, NodePlan, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import PRODUCTS
from onnxshot.planning.trained_scales import Trained
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.group_search import Forms
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.runtimes.ort_kernel_times import kernel_times
from onnxshot.runtimes.ort_runtime import Feed, Runnable
from onnxshot.targets.base import Target

SHORTEST_MS = 0.1
"""Shorter runs are mostly overhead, and their times decide nothing."""
_SAMPLES = 4  # that mixes are measured on
_FEEDS = 4  # that kernels are timed on
_TWICE = 2.2  # times one product, at most: two products, and the quantization of what the first one leaves
_WIDE = 1 << 16  # values of a weight: below them two products are slower than one in float
_FAR_DB = 3.0  # above a goal, noise takes half of what the goal allows
_PASSES = 3  # over samples for one plan at most: what is quantized may depend on what was seen


@dataclass
class PlanTrials:
    """Builds a plan with groups in other forms, without repairs, and measures it.

    Attributes:
        model: the float model that the plan is for; it is not changed.
        target: the rules of the runtime.
        recipe: what the plan follows, with what trials found.
        plan: the plan.
        evidence: what scales are chosen from.
        trained: scales that the model came with.
        judge: compares candidates with the given model.
        numbers: of the judge's samples to compare on.
        feeds: samples that kernels are timed on.
        threads: CPU threads.
        seconds: how long kernels are timed.
        in_float: what a group in float is: `stored` or `float`; see `settle`.
        whole: measures a mix of forms in place of the judge; None for the judge.
        each: called before each model is made; it may raise to end the search.
    """

    model: Model
    target: Target
    recipe: Recipe
    plan: Plan
    evidence: Evidence
    trained: Trained
    judge: Judge
    numbers: Sequence[int]
    feeds: Sequence[Feed]
    threads: int
    seconds: float = 1.0
    in_float: str = STORED
    whole: Callable[[Forms], float] | None = None
    each: Callable[[], None] = lambda: None
    _nodes: Mapping[str, Node] = field(init=False)
    _patterns: Mapping[str, str] = field(init=False)
    _noises: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._nodes = {node.label: node for _, node in self.model.walk()}
        self._patterns = exact_patterns(self.model)

    def groups(self) -> list[PlanGroup]:
        """The groups that may take another form: without nodes whose form the user has chosen.

        Where groups go to float weights and all, they hold nodes too of which only the weight is stored in 8 bits.
        """
        asked = {node.label for node in NodeRecipes(self.model, self.recipe).modes}
        found = []
        for group in plan_groups(self.model, self.plan, stored=self.in_float == FLOAT):
            free = tuple(label for label in group.nodes if label not in asked)
            found += [replace(group, nodes=free)] if free else []
        return found

    def choose_samples(self) -> None:
        """Go on with the few samples whose outputs hold most: an empty one tells nothing of a mix."""
        (error,) = self.judge.measure([self._made(self.plan)], self.numbers)
        held = sorted(range(len(self.numbers)), key=lambda i: -error.weights[i])[:_SAMPLES]
        self.numbers, self.feeds = [self.numbers[i] for i in sorted(held)], [self.feeds[i] for i in sorted(held)]

    def settle(self, goal_db: float) -> None:
        """Let groups in float keep their weights in 8 bits, unless these alone cost the outputs too much for a goal."""
        if self._noise_in(STORED) > 10 ** (-(goal_db + _FAR_DB) / 10):
            self.in_float = FLOAT

    def none(self) -> float:
        """The noise relative to the signal with all groups in float."""
        return self._noise_in(self.in_float)

    def labels(self, forms: Forms) -> tuple[str, ...]:
        """The nodes in other forms, in graph order."""
        moved = {label for label, _ in forms}
        return tuple(label for label in self._nodes if label in moved)

    def patterns(self, forms: Forms) -> tuple[str, ...]:
        """Patterns of the nodes in other forms, in graph order."""
        return tuple(self._patterns[label] for label in self.labels(forms))

    def forms(self, group: PlanGroup) -> Sequence[str]:
        """In float; products that the target has kernels for: dynamic in place of static, and inputs of 16 bits.

        Those take two products, which are faster than float where the weight is large.
        """
        products = {self._how[label] for label in group.nodes if self._may_be_dynamic(label)}
        found = [self.in_float]
        if STATIC in products and self.recipe.mode == STATIC:
            found.append(DYNAMIC)
        if any(self._may_be_dynamic(label) and self._is_wide(label) for label in group.nodes):
            found.append(DYNAMIC16)
        return found

    def alone(self, moves: Iterable[tuple[PlanGroup, str]]) -> Iterator[float]:
        """Yield the noise relative to the signal with one group quantized in a form, and all others in float."""
        plans = (self._alone(group, form) for group, form in moves)
        return (10 ** (-db / 10) for db in self.measure(plans))

    def together(self, forms: Forms) -> float:
        """SQNR in dB with these nodes in other forms."""
        return self.whole(forms) if self.whole else next(self.measure([self.plan_of(self.recipe_of(forms))]))

    def has_weights(self, group: PlanGroup) -> bool:
        """Whether a node of the group multiplies by a weight."""
        return any(self._weighted[label] for label in group.nodes)

    def milliseconds(self, group: PlanGroup, form: str) -> float:
        """How much more time a group takes in this form; each weight the same, where runs are too short to be timed."""
        whole = sum(self.times[""].values())
        if whole < SHORTEST_MS:
            return whole * sum(self._weighted[label] for label in group.nodes) / max(sum(self._weighted.values()), 1)
        planned, other = self.times[""], self.times[form]
        return sum(other[label] - planned[label] for label in group.nodes)

    def measure(self, plans: Iterable[Plan]) -> Iterator[float]:
        """SQNR in dB of each plan."""
        for one in self.judge.measure(map(self._made, plans), self.numbers):
            yield max(-CAP_DB, one.worst_db)

    def plan_of(self, recipe: Recipe) -> Plan:
        """Plan another recipe, with scales from the same statistics.

        Tensors that only this plan quantizes are observed on the judge's samples.
        """
        for _ in range(_PASSES):
            try:
                return make_plan(self.model, self.target, recipe, self.evidence, self.trained)
            except UsageError:
                observe = make_plan(self.model, self.target, recipe, trained=self.trained).observe
                new = [name for name in observe if name not in self.evidence.stats]
                if not new:
                    raise
            samples = [self.judge.samples[number] for number in self.numbers]
            found = collect(self.model, new, samples, threads=self.threads).stats
            self.evidence = replace(self.evidence, stats={**self.evidence.stats, **found})
        return make_plan(self.model, self.target, recipe, self.evidence, self.trained)

    def recipe_of(self, forms: Forms, recipe: Recipe | None = None) -> Recipe:
        """A recipe with these nodes in other forms; rules of the recipe itself win."""
        recipe = recipe or self.recipe
        chosen = dict(forms)
        own = {}
        for label in self._nodes:
            if (form := chosen.get(label)) is not None:
                fits = form in (FLOAT, STORED) or self._may_be_dynamic(label)
                own[self._patterns[label]] = {"mode": form if fits else self.in_float}
        return replace(recipe, layers={**own, **recipe.layers})

    @cached_property
    def times(self) -> Mapping[str, Mapping[str, float]]:
        """Form -> milliseconds of each node; the empty form is the one that it is planned in."""
        groups = self.groups()
        labels = [label for group in groups for label in group.nodes]
        tried = {form for group in groups for form in self.forms(group)}
        models = {STORED: LeanModel.of(self.model), "": LeanModel.of(self._finished(self.plan))}
        if tried & {DYNAMIC, DYNAMIC16}:
            moved = frozenset((label, DYNAMIC) for label in labels if self._may_be_dynamic(label))
            models[DYNAMIC] = LeanModel.of(self._finished(self.plan_of(self.recipe_of(moved))))
        parts = {label: self._nodes[label].outputs[0].name for label in labels}
        timed = kernel_times(
            list(models.values()), parts, self.feeds[:_FEEDS], threads=self.threads,
            seconds=self.seconds * len(models),
        )  # fmt: skip
        found = dict(zip(models, timed, strict=True))
        found[FLOAT] = found[STORED]
        if DYNAMIC in found:
            found[DYNAMIC16] = {
                label: _TWICE * found[DYNAMIC][label] if self._may_be_dynamic(label) else found[STORED][label]
                for label in labels
            }
        return found

    @cached_property
    def _weighted(self) -> Mapping[str, bool]:
        return {node.node: node.has_weight and node.how != FLOAT for node in self.plan.nodes}

    @cached_property
    def _how(self) -> Mapping[str, str]:
        return {node.node: node.how for node in self.plan.nodes}

    def _may_be_dynamic(self, label: str) -> bool:
        op = self._nodes[label].op
        return op in PRODUCTS and op in self.target.dynamic

    def _is_wide(self, label: str) -> bool:
        return elements(self._nodes[label].inputs[1]) >= _WIDE

    def _noise_in(self, form: str) -> float:
        if form not in self._noises:
            forms = frozenset((label, form) for group in self.groups() for label in group.nodes)
            (db,) = self.measure([self.plan_of(self.recipe_of(forms))])
            self._noises[form] = 10 ** (-db / 10)
        return self._noises[form]

    def _alone(self, group: PlanGroup, form: str) -> Plan:
        """Plan a group in a form, and all other nodes in float.

        A node may be static only because its neighbours are int8: without them, it is included by name.
        """
        own = set(group.nodes)
        others = tuple(
            self._patterns[node.node]
            for node in self.plan.nodes
            if node.node not in own and node.node in self._patterns and self._leaves_float(node)
        )
        static = tuple(self._patterns[label] for label in group.nodes if self._how[label] == STATIC and not form)
        recipe = replace(self.recipe, exclude=(*self.recipe.exclude, *others), include=static)
        return self.plan_of(self.recipe_of(frozenset((label, form) for label in own), recipe) if form else recipe)

    def _leaves_float(self, node: NodePlan) -> bool:
        return node.how != FLOAT or (self.in_float == FLOAT and node.node in self.plan.stored)

    def _made(self, plan: Plan) -> Runnable:
        self.each()
        model = copy_of(self.model)
        apply_plan(model, plan, self.recipe)
        return candidate_of(model)

    def _finished(self, plan: Plan) -> Model:
        model = copy_of(self.model)
        apply_plan(model, plan, self.recipe)
        finish(model, self.target, self.recipe)
        return model
