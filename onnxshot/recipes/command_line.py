"""A recipe as the options of `onnxshot quantize` that ask for it."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from onnxshot.recipes.recipe import Recipe

_VALUES = (
    "mode", "target", "precision", "format", "activation_type", "weight_type", "block", "effort", "method", "batch",
)  # fmt: skip
_GLOBS = ("exclude", "include")


def options_of(recipe: Recipe, before: Recipe | None = None) -> str:
    """The whole set of options; those that `before` does not ask for stand first.

    What only a file can ask for is not spelled out, and is said to be as it was given.
    """
    known = set(_told(before)) if before is not None else set()
    found = sorted(_told(recipe), key=lambda option: option in known)  # stable
    spoken = {*_VALUES, *_GLOBS, "per_channel", "portable_ops"}
    silent = [f.name for f in fields(recipe) if f.name not in spoken and not _is_default(recipe, f.name)]
    rest = f" (with {', '.join(silent)} of the recipe as given)" if silent else ""
    return " ".join(found) + rest


def _told(recipe: Recipe) -> list[str]:
    found = [
        f"--{name.replace('_', '-')} {shlex.quote(str(getattr(recipe, name)))}"
        for name in _VALUES
        if not _is_default(recipe, name)
    ]
    found += [] if recipe.per_channel else ["--per-tensor"]
    found += ["--portable-ops"] if recipe.portable_ops else []
    for name in _GLOBS:
        found += [f"--{name} {shlex.quote(glob)}" for glob in getattr(recipe, name)]
    return found


def _is_default(recipe: Recipe, name: str) -> bool:
    value: Any = getattr(recipe, name)
    return bool(value == getattr(Recipe(), name))
