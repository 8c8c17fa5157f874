"""One stage of a recipe, done to one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxshot.api.prune import prune
from onnxshot.api.quantize import quantize
from onnxshot.api.shrink import shrink, shrink_as_recorded
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.execution.statistics_source import HOLDOUT
from onnxshot.recipes.stages import ModelStage, PruneStage, ShrinkStage
from onnxshot.results.pruned import PruneResult
from onnxshot.results.quantized import Result
from onnxshot.results.shrunk import ShrinkResult
from onnxshot.settings import Settings

StageResult = PruneResult | ShrinkResult | Result


def run_recipe_stage(
    stage: ModelStage,
    path: Path,
    calib: Any,
    data: Dataset | None,
    *,
    preset: str | Preset | None,
    settings: Settings,
    stats: str | Path | None = None,
    decided: Mapping[str, Any] | None = None,
) -> StageResult:
    """The result of a stage, stamped, not written; nothing learns from the last quarter of the samples.

    calib: samples as `quantize` takes them; data: the same, opened. decided: by an earlier run of the stage, which this
    one then repeats: which channels are cut, and by how many of the samples. Raises what `prune`, `shrink` and
    `quantize` raise.
    """
    if isinstance(stage, PruneStage):
        return prune(path, calib, preset=preset, settings=settings, **asdict(stage))
    if isinstance(stage, ShrinkStage):
        if decided:
            return shrink_as_recorded(path, data, stage, decided, settings)
        # It learns from all it is given.
        feeds = None if data is None else (data[i].feed for i in split(len(data), HOLDOUT)[0])
        return shrink(path, feeds, settings=settings, **asdict(stage))
    return quantize(path, calib, stats=stats, preset=preset, recipe=stage, settings=settings)
