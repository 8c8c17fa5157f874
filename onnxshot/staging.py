"""One stage of a recipe, done to one model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.cutting.shrink import shrink
from onnxshot.cutting.shrunk import ShrinkResult
from onnxshot.graph.load import load_model
from onnxshot.observing.cache import model_hash
from onnxshot.observing.calibrating import HOLDOUT
from onnxshot.pipeline import Result, quantize
from onnxshot.pruning.prune import prune
from onnxshot.pruning.report import PruneResult
from onnxshot.recipes.record import record, stamp
from onnxshot.recipes.stages import ModelStage, PruneStage, ShrinkStage
from onnxshot.settings import Settings

StageResult = PruneResult | ShrinkResult | Result


def run_stage(
    stage: ModelStage,
    path: Path,
    calib: Any,
    data: Dataset | None,
    *,
    preset: str | Preset | None,
    settings: Settings,
    stats: str | Path | None = None,
) -> StageResult:
    """The result of a stage, stamped, not written; nothing learns from the last quarter of the samples.

    calib: samples as `quantize` takes them; data: the same, opened. Raises what `prune`, `shrink` and `quantize` raise.
    """
    if isinstance(stage, PruneStage):
        return prune(path, calib, preset=preset, settings=settings, **asdict(stage))
    if isinstance(stage, ShrinkStage):
        # It learns from all it is given.
        feeds = None if data is None else (data[i].feed for i in split(len(data), HOLDOUT)[0])
        cut = shrink(path, feeds, settings=settings, **asdict(stage))
        stamp(cut.model, record(stage, model_hash(load_model(path)), settings, sampled=data is not None))
        return cut
    return quantize(path, calib, stats=stats, preset=preset, recipe=stage, settings=settings)
