"""Write a recipe as options of `quantize`, on the command line or in Python."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from onnxshot.recipes.recipe import Recipe
from onnxshot.wording import is_command_line, option

_VALUES = (
    "mode", "target", "precision", "format", "activation_type", "weight_type", "bits", "block", "effort", "method",
    "batch",
)  # fmt: skip
_GLOBS = ("exclude", "include")


def options_of(recipe: Recipe, before: Recipe | None = None) -> str:
    """The options that ask for a recipe, as text.

    Args:
        recipe: the recipe. Fields that have no option are named at the end, "as recorded".
        before: a recipe to compare with; options that it does not have come first.
    """
    known = set(_options(before)) if before is not None else set()
    found = sorted(_options(recipe), key=lambda option: option in known)  # stable
    with_option = {*_VALUES, *_GLOBS, "per_channel", "portable_ops", "asymmetric"}
    # False only says that something was measured before
    with_option |= {name for name in ("look", "place") if getattr(recipe, name) is False}
    others = [f.name for f in fields(recipe) if f.name not in with_option and not _is_default(recipe, f.name)]
    rest = f" (with {', '.join(others)} as recorded)" if others else ""
    return (" " if is_command_line() else ", ").join(found) + rest


def _options(recipe: Recipe) -> list[str]:
    found = [option(name, str(getattr(recipe, name))) for name in _VALUES if not _is_default(recipe, name)]
    found += [] if recipe.per_channel else [option("per_channel", "False")]
    found += [option("portable_ops", "True")] if recipe.portable_ops else []
    if recipe.asymmetric is not None:
        found.append(option("asymmetric", str(recipe.asymmetric)))
    for name in _GLOBS:
        globs = getattr(recipe, name)
        several = len(globs) > 1 and not is_command_line()
        found += [f"{name}={json.dumps(globs)}"] if several else [option(name, glob) for glob in globs]
    return found


def _is_default(recipe: Recipe, name: str) -> bool:
    value: Any = getattr(recipe, name)
    return bool(value == getattr(Recipe(), name))
