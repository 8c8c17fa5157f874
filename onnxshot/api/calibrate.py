"""Where the statistics of a run come from: a file that was given, the cache, or a pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.statistics_file import (
    Statistics,
    join,
    load_statistics,
    refuse_suffix,
)
from onnxshot.delivery.input_files import of_run
from onnxshot.errors import UsageError
from onnxshot.execution.statistics_source import HOLDOUT, from_data, open_calib
from onnxshot.files.conflicts import Files, Read, Write
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.prepare import prepare, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.settings import Settings
from onnxshot.targets import target_named


@checked
@blames_model
def calibrate(
    model: str | Path | ModelProto,
    calib: Any,
    *,
    output: str | Path | None = None,
    preset: str | Preset | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    holdout: float = HOLDOUT,
) -> Statistics:
    """Run a model over calibration samples and keep statistics of its tensors, for any number of `quantize` runs.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: calibration data, as `quantize` takes it.
        output: an .npz file to write them to.
        preset: preprocessing of pictures.
        recipe: only its target and its includes matter: they decide which tensors are watched.
        settings: how to run it.
        holdout: share 0..1 of the samples, the last ones, that are left alone, to judge a result on.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    settings, recipe = settings or Settings(), recipe or Recipe()
    loaded, target = load_model(model), target_named(recipe.target)
    files = settings.files.reading(*of_run(loaded, calib, preset))
    if output is not None:
        refuse_suffix(Path(output))
        files = files.writing(Write(Path(output), "the file of statistics"))
    files.check()
    half = recipe.quantizes and bool(widen(loaded).computed) and target.keeps_half
    prepare(loaded, target, recipe, keep_overridable=settings.keep_overridable, half=half)
    plan = make_plan(loaded, target, recipe)
    with open_calib(calib, loaded, preset, settings) as data:
        found = from_data(loaded, plan, recipe, data, settings, holdout)
    if output is not None:
        found.statistics.save(output)
    return found.statistics


def merge_files(paths: Sequence[str | Path], output: str | Path) -> Statistics:
    """Join statistics that several machines have gathered on parts of the data, and write them to one file."""
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} file of statistics to merge", "name two or more")
    refuse_suffix(Path(output))
    reads = tuple(Read(Path(path), "one of the files to merge") for path in paths)
    Files(reads, (Write(Path(output), "the output"),)).check()
    joined = join([load_statistics(path) for path in paths], [str(path) for path in paths])
    joined.save(output)
    return joined
