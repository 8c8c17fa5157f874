"""`calibrate`: collect the statistics of a model's tensors once, for any number of `quantize` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.statistics_file import (
    Statistics,
    join,
    load_statistics,
    no_statistics,
    refuse_suffix,
)
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.input_files import of_run
from onnxshot.errors import UsageError
from onnxshot.execution.statistics_source import from_all, open_calib
from onnxshot.files.conflicts import Files, Read, Write
from onnxshot.files.links import named_file
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.results.model_source import ModelSource, plain_source
from onnxshot.rewriting.prepare import prepare, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.settings import Settings, budgeted
from onnxshot.targets import target_named


@checked
@budgeted
@one_blas_thread()
@blames_model
def calibrate(
    model: ModelSource,
    calib: Calib | None,
    *,
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    holdout: float = HOLDOUT,
) -> Statistics:
    """Run a model on calibration samples and collect statistics of its tensors.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: Calibration data, as `quantize` takes it.
        output: Path of an .npz file to write the statistics to. With None they stay in memory.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        recipe: Which tensors are observed. Only its target, includes and excludes matter.
        settings: Threads, samples, device.
        holdout: Share of the samples, spread over all, that is held out, in [0, 1).

    Returns:
        The statistics, which `quantize` takes as `stats` once they are in a file.

    Raises:
        ModelError: The model cannot be read or run.
        CalibrationError: The data does not fit the model.
        UsageError: The output is no .npz file, or cannot be written.
        TargetError: There is no such target.

    Example:
        >>> onnxshot.calibrate("model.onnx", "samples/", output="model.npz")
        >>> onnxshot.quantize("model.onnx", stats="model.npz")
    """
    calib = with_transform(calib, transform)
    model = plain_source(model)
    settings, recipe = settings or Settings(), recipe or Recipe()
    loaded, target = load_model(model), target_named(recipe.target)
    files = settings.files.reading(*of_run(loaded, calib, preset))
    if output is not None:
        refuse_suffix(named_file(output))
        files = files.writing(Write(Path(output), "the file of statistics", no_statistics))
    files.check()
    half = recipe.quantizes and bool(widen(loaded).computed) and target.keeps_half
    prepare(loaded, target, recipe, keep_overridable=settings.keep_overridable, half=half)
    plan = make_plan(loaded, target, recipe)
    with open_calib(calib, loaded, preset, settings) as data:
        found = from_all(loaded, plan, recipe, data, settings, holdout)
    if output is not None:
        found.save(output)
    return found


def merge_files(paths: Sequence[str | Path], output: str | Path) -> Statistics:
    """Join statistics that were collected on parts of the data, and write them to one file.

    Args:
        paths: Two or more .npz files that `calibrate` wrote for the same model.
        output: Path of the .npz file to write.

    Raises:
        UsageError: There are fewer than two files, or the output cannot be written.
        CalibrationError: The files are of different models or recipes.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} file of statistics to merge", "name two or more")
    refuse_suffix(named_file(output))
    reads = tuple(Read(Path(path), "one of the files to merge") for path in paths)
    Files(reads, (Write(Path(output), "the output", no_statistics),)).check()
    joined = join([load_statistics(path) for path in paths], [str(path) for path in paths])
    joined.save(output)
    return joined
