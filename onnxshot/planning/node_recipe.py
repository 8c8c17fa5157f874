"""What a recipe asks of each node: what it asks of all, with what it asks of some in place of that."""

from __future__ import annotations

from dataclasses import replace

from onnxshot.graph import Model, Node
from onnxshot.planning.name_patterns import match_nodes
from onnxshot.planning.plan import FLOAT
from onnxshot.recipes.layer_rule import LayerRule
from onnxshot.recipes.recipe import Recipe


class NodeRecipes:
    """A recipe, node by node.

    Attributes:
        left: nodes that are to stay in float, with the reason.
        forced: nodes that are to be quantized also where that does not pay.

    Raises UsageError where a pattern matches nothing.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self._recipe = recipe
        self._rules: dict[Node, LayerRule] = {}
        self._recipes: dict[LayerRule, Recipe] = {}
        excluded = match_nodes(model, recipe.exclude, "exclude pattern")
        self.left = {node: f"excluded by {pattern!r}" for node, pattern in excluded.items()}
        self.forced = set(match_nodes(model, recipe.include, "include pattern"))
        for glob, rule in recipe.rules.items():
            for node in match_nodes(model, (glob,), "the pattern of layers"):
                before = self._rules.get(node)
                self._rules[node] = replace(before, **rule.given) if before is not None else rule
        for node, rule in self._rules.items():
            if rule.mode == FLOAT:
                self.left.setdefault(node, "layers says float")
            elif rule.mode is not None:
                self.forced.add(node)

    def of(self, node: Node) -> Recipe:
        """The recipe as it is for this node."""
        rule = self._rules.get(node)
        if rule is None:
            return self._recipe
        if rule not in self._recipes:
            self._recipes[rule] = under_rule(self._recipe, rule)
        return self._recipes[rule]

    def method(self, *makers: Node | None) -> str | None:
        """How the range of what these nodes give is chosen, where that is not as of the others."""
        rules = (self._rules.get(node) for node in makers if node is not None)
        return next((rule.method for rule in rules if rule is not None and rule.method is not None), None)

    @property
    def modes(self) -> dict[Node, str]:
        """Nodes that are asked to be treated in a mode of their own, but for those left in float."""
        asked = {node: rule.mode for node, rule in self._rules.items() if node not in self.left}
        return {node: mode for node, mode in asked.items() if mode is not None}


def under_rule(recipe: Recipe, rule: LayerRule) -> Recipe:
    """The recipe of layers with this rule."""
    own = {key: value for key, value in rule.given.items() if (key, value) != ("mode", FLOAT)}
    return replace(recipe, layers={}, **own)
