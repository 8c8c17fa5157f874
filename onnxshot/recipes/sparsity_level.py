"""One slider from int8 to sparse int8: a number from 0 to 1 as stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxshot.errors import UsageError
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages

MOST_SPARSITY = 0.7
"""Share of the weights that become zero at level 1."""
_BEST_FROM = 0.5  # where zeros cost more than rounding, and the refitting of what stays is worth its time


def at_level(level: float, options: Mapping[str, Any]) -> Stages:
    """The stages of a level in [0, 1]: 0 quantizes only, then sparsity grows with the level up to MOST_SPARSITY.

    Effort is balanced below 0.5 and best from there on, unless `options`, fields of the recipe of quantization, name
    another. Raises UsageError for a level that is none.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 1:
        raise UsageError(f"the optim level is {level!r}", "give a number from 0, int8 alone, to 1, sparse and int8")
    quantized = Recipe.from_dict({"effort": "best" if level >= _BEST_FROM else "balanced", **options})
    sparsity = round(MOST_SPARSITY * level, 4)
    return Stages((PruneStage(sparsity), quantized) if sparsity else (quantized,))
