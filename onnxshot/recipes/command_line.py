"""Write a recipe as options of `onnxshot quantize`."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from onnxshot.recipes.recipe import Recipe

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
    return " ".join(found) + rest


def _options(recipe: Recipe) -> list[str]:
    found = [
        f"--{name.replace('_', '-')} {shlex.quote(str(getattr(recipe, name)))}"
        for name in _VALUES
        if not _is_default(recipe, name)
    ]
    found += [] if recipe.per_channel else ["--per-tensor"]
    found += ["--portable-ops"] if recipe.portable_ops else []
    if recipe.asymmetric is not None:
        found.append("--asymmetric" if recipe.asymmetric else "--symmetric")
    for name in _GLOBS:
        found += [f"--{name} {shlex.quote(glob)}" for glob in getattr(recipe, name)]
    return found


def _is_default(recipe: Recipe, name: str) -> bool:
    value: Any = getattr(recipe, name)
    return bool(value == getattr(Recipe(), name))
