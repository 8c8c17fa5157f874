"""Turn one number from 0 (int8) to 1 (sparse int8) into the stages of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxshot.errors import UsageError
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages

MOST_SPARSITY = 0.7
"""Sparsity at level 1: the share of weights set to zero."""
_BEST_FROM = 0.5  # from here on, pruning costs more accuracy than rounding, and refitting weights is worth its time


def at_level(level: float, options: Mapping[str, Any]) -> Stages:
    """The stages of an optimization level.

    Args:
        level: 0 <= level <= 1. At 0, the model is only quantized; sparsity grows linearly up to MOST_SPARSITY at 1.
            The effort is 'balanced' below 0.5 and 'best' from there on, unless `options` names another.
        options: fields of the quantize recipe.

    Raises:
        UsageError: the level is not such a number.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 1:
        raise UsageError(f"the optim level is {level!r}", "give a number from 0, int8 alone, to 1, sparse and int8")
    quantized = Recipe.from_dict({"effort": "best" if level >= _BEST_FROM else "balanced", **options})
    sparsity = round(MOST_SPARSITY * level, 4)
    return Stages((PruneStage(sparsity), quantized) if sparsity else (quantized,))
