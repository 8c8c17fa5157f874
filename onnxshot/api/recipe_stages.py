"""Run the stages of a recipe: all of them for `compress`, one at a time for `replay`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxshot.api.prune import prune
from onnxshot.api.quantize import quantize
from onnxshot.api.shrink import shrink, shrink_as_recorded
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.stage_files import stage_names
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.graph import Model
from onnxshot.graph.weight_sparsity import lost_zeros
from onnxshot.recipes.stages import EmitStage, ModelStage, PruneStage, ShrinkStage, Stage, Stages, kind_of
from onnxshot.report.report import Report
from onnxshot.results.pruned import PruneResult
from onnxshot.results.quantized import Result
from onnxshot.results.shrunk import ShrinkReport, ShrinkResult
from onnxshot.settings import Settings

StageResult = PruneResult | ShrinkResult | Result


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What every stage reads: the given model as a file, the samples as given and opened, preset and settings."""

    source: Path
    calib: Any
    data: Dataset
    preset: str | Path | Preset | SoundPreset | TextPreset | None
    settings: Settings


@dataclass(frozen=True, slots=True)
class StageModel:
    """The file that a stage has written, and its report."""

    path: Path
    report: Report | ShrinkReport


@dataclass(frozen=True, slots=True)
class RanStages:
    """All stages after they ran.

    Attributes:
        final: The result of the last stage that changes the model.
        models: The file of every such stage.
        emits: Every emit stage, with the file that it emits.
    """

    final: StageResult
    models: tuple[StageModel, ...]
    emits: tuple[tuple[EmitStage, Path], ...]


def run_recipe_stages(stages: Stages, inputs: StageInputs, folder: Path) -> RanStages:
    """Run the stages in order; each reads the file that the one before has written to the folder."""
    path, pruned = inputs.source, None
    models, emits = list[StageModel](), list[tuple[EmitStage, Path]]()
    for i, (stage, name) in enumerate(zip(stages.stages, stage_names(stages), strict=True)):
        if isinstance(stage, EmitStage):
            emits.append((stage, path))
            continue
        try:
            final = run_recipe_stage(
                stage, path, inputs.calib, inputs.data, preset=inputs.preset, settings=inputs.settings
            )
            if pruned is not None and not isinstance(stage, ShrinkStage):
                _refuse_lost_zeros(pruned, final.model, stage)
        except OnnxshotError as e:
            e.message = f"stage {i + 1} ({kind_of(stage)}): {e.message}"
            raise
        path = final.save(folder / f"{name}.onnx")
        models.append(StageModel(path, final.report))
        if isinstance(stage, PruneStage) or (pruned is not None and isinstance(stage, ShrinkStage)):
            pruned = final.model
    return RanStages(final, tuple(models), tuple(emits))


def _refuse_lost_zeros(pruned: Model, after: Model, stage: Stage) -> None:
    """Raise ModelError if a stage has lost zeros of a weight."""
    lost = lost_zeros(pruned, after)
    if lost:
        hint = "keep_zeros: true keeps them" if isinstance(stage, PruneStage) else "report this"
        raise ModelError(f"zeros of {len(lost)} weights are lost, such as {lost[0]!r}", hint)


def run_recipe_stage(
    stage: ModelStage,
    path: Path,
    calib: Any,
    data: Dataset | None,
    *,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    settings: Settings,
    stats: str | Path | None = None,
    decided: Mapping[str, Any] | None = None,
) -> StageResult:
    """Run one stage, which stamps its model but does not write it; a quarter of the samples is held out.

    Args:
        stage: The stage.
        path: The model.
        calib: Samples, as `quantize` takes them.
        data: The same samples, opened.
        preset: How samples become inputs.
        settings: Threads, verification.
        stats: Statistics for a quantize stage without samples.
        decided: What an earlier run of a shrink stage decided; this run repeats that.

    Raises:
        OnnxshotError: What `prune`, `shrink` and `quantize` raise.
    """
    if isinstance(stage, PruneStage):
        return prune(path, calib, preset=preset, settings=settings, **asdict(stage))
    if isinstance(stage, ShrinkStage):
        if decided:
            return shrink_as_recorded(path, data, stage, decided, settings)
        # `shrink` holds out no samples of its own.
        feeds = None if data is None else (data[i].feed for i in split(len(data), HOLDOUT)[0])
        return shrink(path, feeds, settings=settings, **asdict(stage))
    return quantize(path, calib, stats=stats, preset=preset, recipe=stage, settings=settings)
