"""Reasons of nodes in float: what a recipe asked for, and what a run measured."""

from onnxshot.graph.skip import Skip
from onnxshot.planning.node_recipe import with_measured_reasons
from onnxshot.recipes.recipe import Recipe

LAYERS = "left in float by `layers` of the result's recipe"
OTHER = "not quantized: there is no rule for its op"


def reasons(given: Recipe) -> list[str]:
    skips = [Skip("a", "Conv", LAYERS), Skip("b", "Conv", "excluded by 'b'"), Skip("c", "Foo", OTHER)]
    return [skip.reason for skip in with_measured_reasons(skips, given)]


def test_what_no_one_asked_for_was_measured() -> None:
    layers, pattern, other = reasons(Recipe())
    assert layers == pattern and layers.startswith("left in float, as measured")
    assert other == OTHER


def test_what_the_recipe_asks_for_is_said_so() -> None:
    given = Recipe(exclude=("b",), layers={"a": {"mode": "float"}})
    assert reasons(given) == [LAYERS, "excluded by 'b'", OTHER]
