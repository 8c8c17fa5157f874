"""Collect calibration statistics: run the float model over samples and keep statistics instead of tensors.

One pass over the samples is enough, and memory does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot import memory
from onnxshot.calibration.checks import refuse_nan
from onnxshot.calibration.enough_samples import Settling, stops
from onnxshot.calibration.observers import Glimpse, Observers
from onnxshot.calibration.outliers import Outliers, is_blank
from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.calibration.sampling import spread
from onnxshot.calibration.stats import NO_STATS, Span, TensorStats
from onnxshot.comparison.random_nodes import fix_randomness
from onnxshot.errors import CalibrationError
from onnxshot.execution.calibration_journal import Journal
from onnxshot.execution.instrumented_model import OutsideProbe, Probe, probe
from onnxshot.execution.kept_glimpses import KeptGlimpses
from onnxshot.execution.parted_probe import PartedProbe
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import concrete_shapes
from onnxshot.progress import PartSteps, Progress
from onnxshot.runtimes.ort_runtime import Runner, providers_for
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.parted_run import Step
from onnxshot.wording import worded

_LARGE_SHARE = 6  # of `memory.held_bytes()`: observed tensors of one sample, above which samples run one at a time
_READ_EARLY = 8 << 20  # bytes of samples that are read while the session is created
_RANGES = "looking at ranges"
_NAMED = 3  # most samples named in a note
_IN_PARTS = 64  # samples that one pass over the parts of a large model takes


@dataclass(frozen=True, slots=True)
class Collected:
    """What a pass over the samples found.

    Attributes:
        stats: Statistics by tensor name.
        used: Indices of the samples that were run, in the order they were run.
        notes: Remarks on unusual samples, and on how many were needed.
        kept: The glimpses of the tensors that were to be kept; None if there were none.
    """

    stats: dict[str, TensorStats]
    used: tuple[int, ...]
    notes: tuple[str, ...] = ()
    kept: KeptGlimpses | None = None


def collect(
    model: Model,
    names: Sequence[str],
    samples: Dataset | Sequence[Sample],
    *,
    channels: Collection[str] = (),
    keep: Mapping[str, int] | None = None,
    settle: bool = False,
    threads: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
    journal: Journal | None = None,
    beside: Mapping[str, TensorStats] | None = None,
) -> Collected:
    """Collect statistics of the named tensors over the samples.

    The same samples give the same statistics to the bit, whatever the number of threads. Several samples run at once,
    each on one thread, while the next ones are read. If their tensors are large, samples run one at a time on all
    threads.

    Memory: what these inferences need, a few glimpses, and 100 kB per tensor, whatever the number of samples.

    Args:
        model: The float model, normalized.
        names: Tensors to observe.
        samples: Samples to run.
        channels: Those of `names` whose extremes are also kept per channel of the last axis.
        keep: Name -> rank of the tensors whose glimpses are kept (see `KeptGlimpses`).
        settle: Stop as soon as the ranges have settled (see `Settling`). Samples are then run in an order of which
            every prefix is spread over all samples.
        threads: CPU threads in total.
        device: "cpu", "cuda" or "openvino", an execution provider of ONNX Runtime.
        progress: Called with the stage, the samples done and the samples in total.
        journal: What an earlier run found before it was ended; what is found here is added. For a model in parts.
        beside: Statistics over other samples. A sample is told as an outlier where it is one beside those too.

    Raises:
        CalibrationError: A tensor is NaN or infinite. Names the tensor and the sample.
        ModelError: The model does not run on a sample.
    """
    total = len(samples)
    order, watched = order_of(total, settle=settle), list(names)
    ends = list(stops(total)) if settle else [total]
    observers, outliers, settling = Observers(len(watched)), Outliers(len(watched)), Settling(len(watched))
    if beside:
        outliers.add_known([beside.get(name, NO_STATS) for name in watched])
    used: list[int] = []
    blank: list[str] = []
    kept = KeptGlimpses(watched, keep) if keep else None
    observed = observe_samples(
        model, watched, samples, order, channels=channels, threads=threads, device=device,
        step=_steps(progress, "calibrating", ends), journal=journal, ends=ends,
    )  # fmt: skip
    parted = runs_in_parts(model)
    for number, (sample, seen) in zip(order, observed, strict=False):
        observers.add(seen)
        outliers.add(seen, sample.name)
        if kept is not None:
            kept.add(seen)
        if is_blank(sample.feed):
            blank.append(sample.name)
        used.append(number)
        if progress is not None and not parted:
            progress("calibrating", len(used), total)
        if settle and settling.add(seen):
            break
    stats = dict(zip(watched, observers.stats(), strict=True))
    notes = tuple(notes_of(outliers, blank, watched, len(used), total))
    return Collected(stats, tuple(used), notes, kept)


def order_of(total: int, *, settle: bool) -> list[int]:
    """The order in which samples are run; spread out if the pass may stop early (`settle`)."""
    return spread(total) if settle else list(range(total))


def observe_samples(
    model: Model,
    names: Sequence[str],
    samples: Dataset | Sequence[Sample],
    order: Sequence[int],
    *,
    channels: Collection[str] = (),
    threads: int = 2,
    device: str = "cpu",
    step: Step | None = None,
    journal: Journal | None = None,
    ends: Sequence[int] = (),
) -> Iterator[tuple[Sample, Glimpse]]:
    """Yield the samples with these indices, each with a glimpse of the named tensors.

    Arguments and errors as in `collect`; `step` is called for a model that runs in parts. Where the pass may end, after
    the numbers of samples in `ends`, no sample beyond is run before it is asked for.
    """
    if runs_in_parts(model):
        watched = list(dict.fromkeys((*names, *_float_outputs(model))))
        parted = _observe_in_parts(model, watched, channels, samples, order, threads, device, step, journal, ends)
        for sample, seen in parted:
            if not seen.finite:
                _raise_not_finite(model, names, sample, threads)
            yield sample, seen.first(len(names))
        return
    runs = max(1, min(threads, len(order))) if device == "cpu" and not _is_large(model, names, samples) else 1
    watched = list(dict.fromkeys((*names, *_float_outputs(model))))
    make = partial(probe, model, watched, channels, threads=max(1, threads // runs), providers=providers_for(device))
    for sample, seen in _observe_in_order(make, samples, order, runs):
        if not seen.finite:
            _raise_not_finite(model, names, sample, threads)
        yield sample, seen.first(len(names))


def extremes(
    model: Model,
    names: Sequence[str],
    samples: Dataset | Sequence[Sample],
    *,
    threads: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Span]:
    """Smallest and largest value of the named tensors over all samples.

    Unlike `collect`, it accepts tensors with NaN or infinite values, such as masks.

    Args:
        model: The float model.
        names: Tensors to observe.
        samples: Samples to run.
        threads: CPU threads in total.
        device: As in `collect`.
        progress: As in `collect`.

    Raises:
        ModelError: The model does not run on a sample.
    """
    make = partial(probe, model, list(names), (), threads=threads, providers=providers_for(device))
    order = range(len(samples))
    if runs_in_parts(model):
        step = _steps(progress, _RANGES, [len(samples)])
        observed = _observe_in_parts(model, list(names), (), samples, order, threads, device, step)
    else:
        observed = _observe_in_order(make, samples, order, 1)
    low, high, size = np.full(len(names), np.inf), np.full(len(names), -np.inf), np.zeros(len(names), np.int64)
    for done, (_, seen) in enumerate(observed, 1):
        sound = seen.finite_each
        np.minimum(low, np.where(sound, seen.lows, -np.inf), out=low)
        np.maximum(high, np.where(sound, seen.highs, np.inf), out=high)
        np.maximum(size, seen.sizes, out=size)
        if progress is not None and not runs_in_parts(model):
            progress(_RANGES, done, len(samples))
    found = zip(low.tolist(), high.tolist(), size.tolist(), strict=True)
    return {name: Span(*one) for name, one in zip(names, found, strict=True)}


def runs_in_parts(model: Model) -> bool:
    """Whether a model has more weights than one session may hold."""
    return model.weight_bytes() > memory.part_bytes()


def _steps(progress: Progress | None, name: str, ends: Sequence[int]) -> Step | None:
    return None if progress is None else PartSteps(progress, name, ends)


def _observe_in_parts(
    model: Model,
    names: Sequence[str],
    channels: Collection[str],
    samples: Dataset | Sequence[Sample],
    order: Sequence[int],
    threads: int,
    device: str,
    step: Step | None,
    journal: Journal | None = None,
    ends: Sequence[int] = (),
) -> Iterator[tuple[Sample, Glimpse]]:
    """As `_observe_in_order`, some samples at a time through all parts of the model."""
    workers = threads if device == "cpu" else 1
    seen = PartedProbe(
        model, names, channels, threads=max(1, threads // workers), providers=providers_for(device),
        limit=None if journal is None else journal.limit,
    )  # fmt: skip
    start, chunk = 0, 0
    while start < len(order):
        read, size = list[Sample](), 0
        most = min(_IN_PARTS, next((end for end in ends if end > start), len(order)) - start)
        for number in order[start : start + most]:
            read.append(samples[number])
            size += sum(values.nbytes for values in read[-1].feed.values())
            if size > memory.held_bytes():
                break
        numbers = order[start : start + len(read)]
        kept = None if journal is None else journal.chunk(chunk, numbers)
        yield from zip(read, seen.observe_all([sample.feed for sample in read], workers, step, kept), strict=True)
        start, chunk = start + len(read), chunk + 1


def _observe_in_order(
    make: Callable[[], Probe], samples: Dataset | Sequence[Sample], order: Sequence[int], runs: int
) -> Iterator[tuple[Sample, Glimpse]]:
    """Yield every sample in this order with its glimpse. `runs` samples run at once, and one more is read ahead.

    The first samples are read while the probe's session is created, which takes as long as about twenty runs.
    """
    read: dict[int, Sample] = {}
    size = 0
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make)
        for number in order:
            if making.done() or size >= _READ_EARLY:
                break
            read[number] = samples[number]
            size += sum(values.nbytes for values in read[number].feed.values())
        session = making.result()
    running = BoundedSemaphore(runs)

    def look(number: int) -> tuple[Sample, Glimpse]:
        sample = read.pop(number) if number in read else samples[number]
        with running:
            return sample, session.observe(sample.feed)

    return in_order(look, order, runs + 1)


def _is_large(model: Model, names: Sequence[str], samples: Dataset | Sequence[Sample]) -> bool:
    """Whether the tensors of one sample are so large that two samples at once would need too much memory."""
    shapes = concrete_shapes(model, {name: x.shape for name, x in samples[0].feed.items()}) if len(samples) else {}
    return sum(4 * math.prod(shapes[name]) for name in names if name in shapes) > memory.held_bytes() // _LARGE_SHARE


def _float_outputs(model: Model) -> list[str]:
    """Float outputs. They are observed but not kept: a NaN that the subsample of a tensor missed may reach them."""
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    return [t.name for t in model.graph.outputs if model.elem_type(t) in floats]


def _raise_not_finite(model: Model, names: Sequence[str], sample: Sample, threads: int) -> None:
    """Raise CalibrationError for the first tensor that is not finite on this sample, or for the sample that is not."""
    refuse_nan(sample)
    if runs_in_parts(model):
        shown = LeanModel.of(model).edited(fix_randomness).exposing(names)
        parts = Runner(shown, threads=threads, inner=True).events([sample.feed], 1, names)
        found: Iterable[tuple[str, NDArray[Any]]] = (pair for _, values in parts for pair in values.items())
    else:
        found = zip(names, OutsideProbe(model, names, (), threads=threads).values(sample.feed), strict=True)
    for name, values in found:
        if not np.isfinite(values.astype(np.float32)).all():
            raise CalibrationError(
                f"tensor {name!r} is NaN or infinite on sample {sample.name!r}",
                "look at that sample and its preprocessing; if the float model itself overflows there, leave it out",
            )


def notes_of(outliers: Outliers, blank: Sequence[str], names: Sequence[str], used: int, total: int) -> Iterator[str]:
    """Notes on outliers and blank samples, and on how many samples were needed. `blank`: names of samples."""
    if used < total:
        every = worded("[[samples=all]] uses all of them")
        yield f"{used} of {total} samples were enough: the ranges had settled ({every})"
    for sample, tensors in list(outliers.found().items())[:_NAMED]:
        number, times = tensors[0]
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        yield f"sample {sample!r} is an outlier: {times:.1f} times the range of all others in {names[number]!r}{more}"
    if blank:
        more = f" and {len(blank) - _NAMED} more" if len(blank) > _NAMED else ""
        yield f"blank samples, one value throughout: {', '.join(map(repr, blank[:_NAMED]))}{more}"
