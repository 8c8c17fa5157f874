"""Where the statistics of a run come from: a file that was given, the cache, or a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset, open_data, split
from onnxshot.calibration.stats import TensorStats
from onnxshot.calibration.statsfile import (
    Statistics,
    data_hash,
    join,
    load_statistics,
    refuse_other,
    refuse_suffix,
)
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.given import of_run
from onnxshot.files.ledger import SAMPLES, Files, Read, Write
from onnxshot.frozen import AS_THEY_ARE, Frozen
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.observing import cache
from onnxshot.observing.collect import collect
from onnxshot.observing.watch import missing_in, watch_of
from onnxshot.planning.plan import Plan
from onnxshot.planning.planner import make_plan
from onnxshot.preparing import frozen_specs, prepare, resolve_preset, widen
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings
from onnxshot.targets import target_named
from onnxshot.targets.unsound import blames_model

HOLDOUT = 0.25
"""Share of the samples, the last ones, that calibration leaves alone: the result is judged on them."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Statistics for a run; calibrated, held_out: numbers of the samples in the data; inferences: how many were run."""

    statistics: Statistics
    calibrated: list[int]
    held_out: list[int]
    inferences: int = 0
    notes: tuple[str, ...] = ()


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


def open_calib(
    calib: Any, model: Model, preset: str | Preset | None, settings: Settings, sizes: Frozen = AS_THEY_ARE
) -> Dataset:
    """Open calibration data for a model; sizes: those that samples must have although the model leaves them free."""
    limit = None if isinstance(calib, str) and calib == "random" and settings.samples == "auto" else settings.limit
    specs = frozen_specs(model, sizes)
    return open_data(calib, specs, resolve_preset(preset), limit=limit, seed=settings.seed)


def from_data(
    model: Model,
    plan: Plan,
    recipe: Recipe,
    data: Dataset,
    settings: Settings,
    holdout: float = HOLDOUT,
    *,
    settle: bool = True,
    known: Mapping[str, TensorStats] | None = None,
) -> Gathered:
    """Statistics of all the plan watches, from the cache where they are there, else from a pass over the data.

    settle: whether the pass may stop early, where the settings allow that; known: statistics of tensors that need not
    be watched again, which the result is without.
    """
    calibrated, held_out = split(len(data), holdout)
    watch = watch_of(model, plan, recipe, data.subset(calibrated), settings, settle=settle, known=known)
    digests, cached = watch.samples.digests(), settings.use_cache and not data.random
    # An entry of a cache that lies among the samples would be one of them from then on.
    cached = cached and cache.is_there() and not Read(Path(data.source), "", SAMPLES).would_take(
        cache.folder() / "entry.npz"
    )
    key = watch.key(digests, recipe, settings.device)
    kept = cache.load(key, Path(settings.shared)) if settings.shared is not None else None
    kept = cache.load(key) if kept is None and cached else kept
    if kept is not None:
        return Gathered(kept, _numbers(kept, calibrated, digests), held_out, 0, kept.notes)
    found = collect(
        model, watch.names, watch.samples, channels=watch.channels, settle=watch.settle, threads=settings.threads,
        device=settings.device, progress=settings.progress,
    )  # fmt: skip
    statistics = watch.statistics(found.stats, found.used, digests, found.notes)
    if cached:
        cache.store(key, statistics)
    used = _numbers(statistics, calibrated, digests)
    return Gathered(statistics, used, held_out, len(found.used), statistics.notes)


def from_file(path: str | Path, model: Model, plan: Plan, data: Dataset | None) -> Gathered:
    """Statistics of a file, which must be of this model, and of this data where there is any.

    Raises CalibrationError where they are not; both hashes are told.
    """
    known = load_statistics(path)
    refuse_other("model", known.model, str(path), cache.model_hash(model), str(model.path or "the model"))
    missing = missing_in(known.tensors, list(plan.observe), plan.watched)
    if missing:
        raise CalibrationError(
            f"{path} holds nothing of tensor {missing[0]!r}",
            "run onnxshot calibrate with the same --target and --include",
        )
    if data is None:
        return Gathered(known, [], [], 0, known.notes)
    refuse_other("preset", known.preset, str(path), data.preset_hash, data.source)
    digests = data.digests()
    if not set(known.samples) <= set(digests):
        refuse_other("data set", known.data, str(path), data_hash(digests), data.source)
    used = set(known.samples)
    calibrated = _numbers(known, range(len(data)), digests)
    last = split(len(data), HOLDOUT)[1]
    new = [i for i, digest in enumerate(digests) if digest not in used]
    held_out = [i for i in last if digests[i] not in used] or new or last
    notes = known.notes
    if not new:
        notes = (*notes, "judged on samples that were calibrated on: no others were given")
    return Gathered(known, calibrated, held_out, 0, notes)


def _numbers(known: Statistics, numbers: Sequence[int], digests: Sequence[str]) -> list[int]:
    """Which of these samples the statistics are of, in order: the same for new statistics, cached ones and a file's."""
    used = set(known.samples)
    return [i for i, digest in zip(numbers, digests, strict=True) if digest in used]
