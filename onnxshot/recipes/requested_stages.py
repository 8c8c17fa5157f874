"""The stages that the arguments of `compress` ask for: a recipe, an optim level, or the short form of prune options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxshot.errors import UsageError
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.sparsity_level import at_level
from onnxshot.recipes.stages import PruneStage, Stages


def requested_stages(
    recipe: Stages | Recipe | str | Path | None,
    optim_level: float | None,
    pruning: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Stages:
    """Resolve the arguments of `compress` to stages.

    Args:
        recipe: Stages, the recipe of quantization, or the path of a file with either.
        optim_level: Number from 0 to 1, see `at_level`.
        pruning: Arguments of the prune stage that were given; `spare` stands for `exclude`.
        options: Fields of the recipe of quantization.

    Raises:
        UsageError: The arguments contradict each other.
    """
    if optim_level is None:
        return _from_recipe(recipe, pruning, options)
    if recipe is None and not pruning:
        return at_level(optim_level, options)
    beside = "a recipe" if recipe is not None else next(iter(pruning))
    raise UsageError(f"an optim level is given beside {beside}", "it is a recipe of its own: give one of them")


def _from_recipe(
    recipe: Stages | Recipe | str | Path | None, pruning: Mapping[str, Any], options: Mapping[str, Any]
) -> Stages:
    """The stages of a recipe, or those of the short form, whose quantize stage may come from a recipe."""
    if isinstance(recipe, str | Path):
        recipe = load_stages(recipe)
    given = () if recipe is None else (recipe,) if isinstance(recipe, Recipe) else recipe.stages
    short = [*pruning, *options]
    if given and not short:
        return Stages(given)
    base = given[0] if given else Recipe()
    if len(given) > 1 or not isinstance(base, Recipe):
        raise UsageError(f"{short[0]} is given beside a recipe of stages", "write it into one of its stages")
    quantized = Recipe.from_dict({**base.to_dict(), **options})
    if given and not pruning:
        return Stages((quantized,))
    renamed = {"exclude" if name == "spare" else name: value for name, value in pruning.items()}
    return Stages((PruneStage.from_dict(renamed), quantized))


def with_portable_ops(stages: Stages) -> Stages:
    """The stages with standard ONNX operators only, which other runtimes than ONNX Runtime read too."""
    return Stages(
        tuple(
            replace(stage, portable_ops=True) if isinstance(stage, Recipe) and stage.quantizes else stage
            for stage in stages.stages
        )
    )
