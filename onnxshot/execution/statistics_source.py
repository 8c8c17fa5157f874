"""Get the statistics a run needs: from a given file, from the cache, or by a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxshot import memory
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, open_data, split
from onnxshot.calibration.sample_parts import HOLDOUT, parts_of
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.statistics_file import (
    Statistics,
    data_hash,
    load_statistics,
    refuse_other,
)
from onnxshot.calibration.stats import TensorStats, merged
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import CalibrationError
from onnxshot.execution import statistics_cache
from onnxshot.execution.calibration_journal import open_journal
from onnxshot.execution.collect import collect, runs_in_parts
from onnxshot.execution.kept_glimpses import Floats, KeptGlimpses, scalable
from onnxshot.execution.model_step import model_step
from onnxshot.execution.observed_tensors import calibration_pass, missing_in
from onnxshot.execution.text_samples import TextOpener
from onnxshot.files import cache_folder
from onnxshot.files.conflicts import SAMPLES, Read
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import NO_FIXED_SHAPES, FixedShapes
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.model_inputs import fixed_specs, input_specs, resolve_preset, with_batch_of
from onnxshot.settings import Settings

_RESUMED = "calibration went on where an earlier run was ended: {} runs of a part on a sample were not repeated"


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """Statistics for a run, and which samples they come from.

    Attributes:
        statistics: The statistics.
        calibrated: Indices of the calibration samples in the data.
        held_out: Indices of the held-out samples.
        choosing: Indices of the samples that were left for choices (see `sample_parts`).
        settled: Whether the pass stopped early, as the ranges had settled.
        inferences: Number of samples that were run for them; 0 if they come from the cache or a file.
        notes: Remarks for the report.
        key: Their key in the cache; empty if they are never cached.
        kept: What the pass saw of tensors whose channels may be scaled; None if it was not kept.
    """

    statistics: Statistics
    calibrated: list[int]
    held_out: list[int]
    choosing: list[int] = field(default_factory=list)
    settled: bool = False
    inferences: int = 0
    notes: tuple[str, ...] = ()
    key: str = ""
    kept: KeptGlimpses | None = None

    @property
    def by_channel(self) -> set[str]:
        """Tensors that were also observed per channel of the last axis."""
        return {name for name, stats in self.statistics.tensors.items() if stats.channel_absmax}


def open_calib(
    calib: Any, model: Model, preset: str | Path | Preset | SoundPreset | TextPreset | None, settings: Settings,
    sizes: FixedShapes = NO_FIXED_SHAPES, *, whole: bool = False, also: Model | None = None,
) -> Dataset:  # fmt: skip
    """Open calibration data for a model.

    Args:
        calib: The data, in any form that `open_data` accepts.
        model: The model.
        preset: Preprocessing of pictures; None for the default.
        settings: Limit and seed are used.
        sizes: Dimensions that samples must have although the model leaves them free.
        whole: Whether batches stay whole where the model takes them, as when it is timed.
        also: Another model that takes the samples; its batch size counts where it is fixed.
    """
    limit = None if isinstance(calib, str) and calib == "random" and settings.samples == "auto" else settings.limit
    specs = fixed_specs(model, sizes)
    specs = specs if also is None else with_batch_of(specs, input_specs(also))
    folder = model.path.parent if model.path is not None else None
    step = model_step(model, settings.threads)
    words = TextOpener(model, settings.threads, settings.samples == "auto")
    return open_data(
        calib, specs, resolve_preset(preset), limit=limit, seed=settings.seed, folder=folder, step=step, words=words,
        whole=whole,
    )


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
    keep: bool = False,
    choosing: bool = False,
    beside: Mapping[str, TensorStats] | None = None,
) -> RunStatistics:
    """Statistics of all tensors the plan observes, from the cache if they are there, else from a pass over the data.

    Args:
        model: The normalized model.
        plan: The plan, which names the tensors.
        recipe: What the user asked for.
        data: Calibration data.
        settings: Threads, device, cache and limits.
        holdout: Share of the samples to hold out.
        settle: Allow the pass to stop early, if the settings do too.
        known: Statistics of tensors that need not be observed again. The result does not repeat them.
        keep: Keep what a pass sees of tensors whose channels may be scaled, for `after_scaling`.
        choosing: Leave samples for choices; otherwise all that are not held out may be calibrated on.
        beside: Statistics over other samples of the run, for notes on outliers.

    Raises:
        CalibrationError: A tensor is NaN or infinite on a sample.
        ModelError: The model does not run on a sample.
    """
    parts = parts_of(len(data), holdout, choices=choosing)
    watch = calibration_pass(model, plan, recipe, data.subset(parts.ranging), settings, settle=settle, known=known)
    digests, cached = watch.samples.digests(), settings.use_cache and not data.random
    # If the cache folder lies among the samples, its entries would become samples.
    cached = cached and cache_folder.is_there() and not Read(Path(data.source), "", SAMPLES).would_take(
        cache_folder.folder() / "entry.npz"
    )
    key = watch.key(digests, recipe, settings.device)
    kept = statistics_cache.load(key, Path(settings.shared)) if settings.shared is not None else None
    kept = statistics_cache.load(key) if kept is None and cached else kept
    lasting = key if cached else ""
    if kept is not None:
        used, settled = _numbers(kept, parts.ranging, digests), len(kept.samples) < len(set(digests))
        return RunStatistics(kept, used, parts.held_out, parts.choosing, settled, 0, kept.notes, lasting)
    journal = open_journal(key, memory.part_bytes()) if cached and runs_in_parts(model) else None
    found = collect(
        model, watch.names, watch.samples, channels=watch.channels, keep=scalable(model) if keep else None,
        settle=watch.settle, threads=settings.threads, device=settings.device, progress=settings.progress,
        journal=journal, beside=beside,
    )  # fmt: skip
    model.check_files()  # else the cache would keep what another model gave
    statistics = watch.statistics(found.stats, found.used, digests, found.notes)
    if cached:
        statistics_cache.store(key, statistics)
    used, notes = _numbers(statistics, parts.ranging, digests), statistics.notes
    settled = len(statistics.samples) < len(set(digests))
    if journal is not None:
        journal.remove()
        notes += (_RESUMED.format(journal.restored),) if journal.restored else ()
    return RunStatistics(
        statistics, used, parts.held_out, parts.choosing, settled, len(found.used), notes, lasting, found.kept
    )  # fmt: skip


def from_all(
    model: Model, plan: Plan, recipe: Recipe, data: Dataset, settings: Settings, holdout: float = HOLDOUT
) -> Statistics:
    """Statistics of all samples that are not held out, to be kept in a file; arguments and errors as in `from_data`.

    They are gathered as a quantization does: those of the samples that ranges come from, then, unless the ranges have
    settled, those of the samples left for choices. So each of the two finds in the cache what the other has stored.
    """
    first = from_data(model, plan, recipe, data, settings, holdout, choosing=True)
    known, left = first.statistics, first.choosing
    if left and not first.settled:
        rest = from_data(
            model, plan, recipe, data.subset(left), settings, 0.0, settle=False, beside=known.tensors
        ).statistics  # fmt: skip
        samples = tuple(sorted({*known.samples, *rest.samples}))
        notes = tuple(dict.fromkeys((*known.notes, *rest.notes)))
        known = replace(known, tensors=merged(known.tensors, rest.tensors), samples=samples, notes=notes)
    return replace(known, considered=known.considered + len(left))


def after_scaling(
    gathered: RunStatistics, model: Model, factors: Mapping[str, Floats], data: Dataset, settings: Settings
) -> tuple[dict[str, TensorStats], int]:
    """Statistics of tensors whose channels are scaled, from what the calibration pass saw of them.

    Where that was not kept, the same pass is made again, so that the result is the same to the bit.

    Args:
        gathered: Statistics of the model before scaling.
        model: That model.
        factors: Tensor name -> factor of each of its channels (axis 1).
        data: All samples.
        settings: Threads, device and progress.

    Returns:
        Statistics of the tensors that `KeptGlimpses.scaled` can tell, and the number of samples that were run.
    """
    key = ""
    if gathered.key:
        parts = (f"{name}\0{values.tobytes().hex()}" for name, values in sorted(factors.items()))
        key = statistics_cache.key(gathered.key, "scaled", *parts)
    kept, runs = gathered.kept, 0
    if not kept:
        stored = statistics_cache.load(key) if key else None
        if stored is not None:
            return dict(stored.tensors), 0
        again = collect(
            model, list(gathered.statistics.tensors), data.subset(gathered.calibrated), channels=gathered.by_channel,
            keep=scalable(model), threads=settings.threads, device=settings.device, progress=settings.progress,
        )  # fmt: skip
        model.check_files()
        kept, runs = again.kept, len(again.used)
    found = kept.scaled(factors, gathered.statistics.tensors) if kept is not None else {}
    if key:
        statistics_cache.store(key, replace(gathered.statistics, tensors=found))
    return found, runs


def from_file(path: str | Path, model: Model, plan: Plan, data: Dataset | None) -> RunStatistics:
    """Statistics from a file that calibration wrote.

    Args:
        path: The file.
        model: The normalized model that they must belong to.
        plan: The plan, which names the tensors that are needed.
        data: Calibration data that they must belong to; None to skip that check.

    Raises:
        CalibrationError: They belong to another model or other data (the message names both hashes), or lack a tensor.
    """
    known = load_statistics(path)
    refuse_other("model", known.model, str(path), statistics_cache.model_hash(model), str(model.path or "the model"))
    missing = missing_in(known.tensors, list(plan.observe), plan.watched)
    if missing:
        raise CalibrationError(
            f"{path} has no statistics of tensor {missing[0]!r}",
            "calibrate with the same [[target]] and [[include]]",
        )
    if data is None:
        return RunStatistics(known, [], [], notes=known.notes)
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
        notes = (*notes, "measured on samples that were calibrated on: no others were given")
    return RunStatistics(known, calibrated, held_out, settled=True, notes=notes)


def _numbers(known: Statistics, numbers: Sequence[int], digests: Sequence[str]) -> list[int]:
    """Indices of the samples that the statistics cover, in order. The same for new, cached and stored statistics."""
    used = set(known.samples)
    return [i for i, digest in zip(numbers, digests, strict=True) if digest in used]
