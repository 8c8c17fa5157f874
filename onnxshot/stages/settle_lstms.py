"""Decide whether LSTMs are quantized, before anything is planned around them."""

from __future__ import annotations

from dataclasses import replace

from onnxshot.calibration.readers import Dataset
from onnxshot.recovery.lstm_trial import try_lstms
from onnxshot.stages.prepare_model import Prepared
from onnxshot.verification.reference import Reference


def settle_lstms(prepared: Prepared, data: Dataset | None, reference: Reference | None) -> tuple[Prepared, list[str]]:
    """Write into the recipe what a trial of int8 LSTMs found, so that a replay needs no trial.

    Returns:
        The model with the recipe to go on with, and notes for the user.
    """
    recipe, given = prepared.recipe, None if reference is None else reference.model
    found = try_lstms(prepared.model, prepared.plan(), recipe, given, data, prepared.settings)
    if found is None:
        return prepared, []
    exclude = (*recipe.exclude, *found.left)
    recipe = replace(recipe, portable_ops=recipe.portable_ops or found.portable, exclude=exclude)
    return replace(prepared, recipe=recipe), [found.note]
