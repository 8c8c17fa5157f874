"""Where the statistics of a run come from: a file that was given, the cache, or a pass over the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset, open_data, split
from onnxshot.calibration.stats import TensorStats
from onnxshot.calibration.statsfile import Statistics, data_hash, join, load_statistics, refuse_other
from onnxshot.effort.smoothing import readers_of
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.frozen import AS_THEY_ARE, Frozen
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.observing import cache
from onnxshot.observing.collect import collect
from onnxshot.planning.plan import STATIC, Plan
from onnxshot.planning.planner import make_plan
from onnxshot.preparing import frozen_specs, prepare, resolve_preset
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings
from onnxshot.targets import TARGETS, target_named

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
    prepare(loaded, target, recipe, keep_overridable=settings.keep_overridable)
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
    if any(Path(output).resolve() == Path(path).resolve() for path in paths):
        raise UsageError(f"{output} is one of the files to merge", "choose another output with -o")
    joined = join([load_statistics(path) for path in paths], [str(path) for path in paths])
    joined.save(output)
    return joined


def open_calib(
    calib: Any, model: Model, preset: str | Preset | None, settings: Settings, sizes: Frozen = AS_THEY_ARE
) -> Dataset:
    """Open calibration data for a model; sizes: those that samples must have although the model leaves them free."""
    limit = None if calib == "random" and settings.samples == "auto" else settings.limit
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
    names, by_channel = _watched(model, plan, recipe)
    names = _missing(known or {}, names, by_channel)
    chosen = data.subset(calibrated)
    settle = settle and settings.samples == "auto" and not data.random
    digests, hashed, key = chosen.digests(), cache.model_hash(model), ""
    if settings.use_cache and not data.random:
        sizes = [str(sorted(recipe.shapes.items()))] if recipe.shapes else []  # pictures are made to fit them
        # Of the names too: what is watched decides when ranges have settled, and so what the statistics are.
        watched = str((sorted(names), sorted(by_channel)))
        key = cache.key(hashed, chosen.preset_hash, settings.device, str(settle), watched, *sizes, *digests)
        kept = cache.load(key)
        if kept is not None:
            return Gathered(kept, _numbers(kept, calibrated, digests), held_out, 0, kept.notes)
    found = collect(
        model, names, chosen, channels=by_channel, settle=settle, threads=settings.threads, device=settings.device,
        progress=settings.progress,
    )  # fmt: skip
    notes = (*found.notes, *_duplicates(chosen, digests))
    of = tuple(sorted({digests[i] for i in found.used}))
    statistics = Statistics(found.stats, hashed, chosen.preset_hash, of, len(chosen), notes)
    if key:
        cache.store(key, statistics)
    return Gathered(statistics, _numbers(statistics, calibrated, digests), held_out, len(found.used), notes)


def from_file(path: str | Path, model: Model, plan: Plan, data: Dataset | None) -> Gathered:
    """Statistics of a file, which must be of this model, and of this data where there is any.

    Raises CalibrationError where they are not; both hashes are told.
    """
    known = load_statistics(path)
    refuse_other("model", known.model, str(path), cache.model_hash(model), str(model.path or "the model"))
    missing = _missing(known.tensors, list(plan.observe), plan.watched)
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


def _watched(model: Model, plan: Plan, recipe: Recipe) -> tuple[list[str], set[str]]:
    """(tensors to watch, those of them by channel): all that a run for another target, or with other exclusions, could.

    The statistics of a model are then the same whichever target was first, and calibration is needed once.
    """
    asked = [Recipe(target=target, include=recipe.include) for target in TARGETS]
    plans = [*(make_plan(model, TARGETS[one.target], one) for one in asked), plan]
    names = list(dict.fromkeys(name for p in plans for name in p.observe))
    by_channel = {name for p in plans for name in p.watched}
    by_channel.update(t.name for p in plans for t in readers_of(model, p, STATIC))  # may be smoothed too
    return names, by_channel


def _numbers(known: Statistics, numbers: Sequence[int], digests: Sequence[str]) -> list[int]:
    """Which of these samples the statistics are of, in order: the same for new statistics, cached ones and a file's."""
    used = set(known.samples)
    return [i for i, digest in zip(numbers, digests, strict=True) if digest in used]


def _missing(tensors: Mapping[str, TensorStats], names: Sequence[str], by_channel: Collection[str]) -> list[str]:
    return [n for n in names if n not in tensors or (n in by_channel and not tensors[n].channel_absmax)]


def _duplicates(data: Dataset, digests: Sequence[str]) -> list[str]:
    """A note on samples that are there more than once."""
    first: dict[str, int] = {}
    twice = [(first[d], i) for i, d in enumerate(digests) if first.setdefault(d, i) != i]
    if not twice:
        return []
    some = ", ".join(f"{data.name(b)!r} equals {data.name(a)!r}" for a, b in twice[:3])
    return [f"{len(twice)} calibration samples are there twice: {some}" + (" and more" if len(twice) > 3 else "")]
