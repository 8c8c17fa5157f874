"""The recipe of each node: the recipe of all nodes, with the overrides of `layers`, `exclude` and `include`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnxshot.graph import Model, Node
from onnxshot.graph.skip import Skip
from onnxshot.planning.name_patterns import is_lenient, match_nodes, nodes_by_name
from onnxshot.planning.plan import DYNAMIC, DYNAMIC16, FLOAT, STORED, WEIGHTS
from onnxshot.recipes.layer_rule import LayerRule
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.values import MEASURED

_EXCLUDED = "excluded by "
_BY_LAYERS = "left in float by `layers` of the result's recipe"
_MEASURED = f"{MEASURED}: quantized it was slower, or cost too much accuracy"


class NodeRecipes:
    """The recipe of each node of one model.

    Attributes:
        excluded: node -> skip reason, for nodes that the recipe leaves in float.
        stored: those of them whose weights may be stored in 8 bits.
        forced: nodes that the user wants quantized even if that does not pay.
        unmatched: patterns that match nothing, and may.

    Raises:
        UsageError: a pattern that does not begin with `?` matches no node.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self._recipe = recipe
        self._rules: dict[Node, LayerRule] = {}
        self._recipes: dict[LayerRule, Recipe] = {}
        held = nodes_by_name(model) if recipe.layers or recipe.exclude or recipe.include else {}
        excluded = match_nodes(model, recipe.exclude, "exclude pattern", held)
        self.excluded = {node: _by(pattern) for node, pattern in excluded.items()}
        self.forced = set(match_nodes(model, recipe.include, "include pattern", held))
        lenient = dict.fromkeys(p for p in (*recipe.exclude, *recipe.include, *recipe.layers) if is_lenient(p))
        self.unmatched = tuple(p for p in lenient if not match_nodes(model, (p,), "", held))
        for pattern, rule in recipe.rules.items():
            for node in match_nodes(model, (pattern,), "the pattern of layers", held):
                before = self._rules.get(node)
                self._rules[node] = replace(before, **rule.given) if before is not None else rule
        self.stored = {node for node, rule in self._rules.items() if rule.mode == STORED and node not in excluded}
        for node, rule in self._rules.items():
            if rule.mode in (FLOAT, STORED):
                self.excluded.setdefault(node, _BY_LAYERS)
            elif rule.mode is not None:
                self.forced.add(node)

    @property
    def untouched(self) -> set[Node]:
        """The excluded nodes whose weights are not changed."""
        return self.excluded.keys() - self.stored

    def of(self, node: Node) -> Recipe:
        """The recipe of this node, with all rules of `layers` that match it applied. Later rules win."""
        rule = self._rules.get(node)
        if rule is None:
            return self._recipe
        if rule not in self._recipes:
            self._recipes[rule] = under_rule(self._recipe, rule)
        return self._recipes[rule]

    def method(self, *makers: Node | None) -> str | None:
        """The range method that `layers` gives the first of these nodes that has one; None if no rule gives one."""
        rules = (self._rules.get(node) for node in makers if node is not None)
        return next((rule.method for rule in rules if rule is not None and rule.method is not None), None)

    def twice(self, node: Node) -> bool:
        """Whether `layers` asks for a dynamic product of an input in 16 bits."""
        return (rule := self._rules.get(node)) is not None and rule.mode == DYNAMIC16

    @property
    def modes(self) -> dict[Node, str]:
        """Node -> mode that `layers` gives it, for nodes that are not excluded."""
        asked = {node: rule.mode for node, rule in self._rules.items() if node not in self.excluded}
        return {node: DYNAMIC if mode == DYNAMIC16 else mode for node, mode in asked.items() if mode is not None}


def with_measured_reasons(skips: Iterable[Skip], given: Recipe) -> list[Skip]:
    """The skips, where those that the given recipe does not ask for say that a measurement decided.

    A run writes what it measured into the recipe of its result, as `layers` or `exclude`; the reasons name these.

    Args:
        skips: of the result.
        given: the recipe before anything was measured.
    """
    asked = {_by(pattern) for pattern in given.exclude} | ({_BY_LAYERS} if given.layers else set())
    return [
        replace(skip, reason=_MEASURED)
        if skip.reason not in asked and (skip.reason == _BY_LAYERS or skip.reason.startswith(_EXCLUDED))
        else skip
        for skip in skips
    ]


def _by(pattern: str) -> str:
    return f"{_EXCLUDED}{pattern!r}"


def under_rule(recipe: Recipe, rule: LayerRule) -> Recipe:
    """The recipe with the settings of one rule of `layers` applied."""
    own = {key: value for key, value in rule.given.items() if key != "mode" or value not in (FLOAT, STORED)}
    if own.get("mode") == DYNAMIC16:
        own["mode"] = DYNAMIC
    if own.get("mode", WEIGHTS) != WEIGHTS:  # blocks exist in no other mode
        recipe = replace(recipe, bits=None, block=None, asymmetric=None)
    return replace(recipe, layers={}, **own)
