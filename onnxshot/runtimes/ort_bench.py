"""Measure latency in interleaved runs: models alternate on the same samples, so that other load affects all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.errors import UsageError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.interleaved_timing import LEAST_ROUNDS, time_interleaved
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_runtime import CPU, Feed, Runner, is_large, stored_bytes
from onnxshot.runtimes.parted_timing import time_in_parts

NOISE = 0.02
"""Relative difference between two interleaved runs of the same file. A file may also grow by this share."""
CLEAR = 0.05
"""Relative precision that suffices for the ratio of two models if it is sure which of them is faster."""
_SHARE = 8  # of the memory budget: larger models are timed in parts, as their sessions hold weights twice, packed too
_ONE_SIDED = 0.95  # share of the rounds: other load on the machine makes a slower model faster in some of them
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 % quantile of t, by degrees of freedom from 1
_CHECKED = 10  # rounds between two checks whether the ratios are precise enough


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one model.

    Attributes:
        path: Its file.
        median_ms: Median of one inference, in milliseconds.
        p10: 10th percentile, in milliseconds.
        p90: 90th percentile, in milliseconds.
        ratio: Time of the first model divided by this one's; above 1 is faster.
        rounds: Number of rounds measured.
        sure: True if the rounds show which of the two is faster, or that they are equally fast (see `is_sure`).
        runtime: The runtime, such as "onnxruntime 1.22.0"; empty if it was not asked for.
        parts: Number of parts that were timed one after the other and added up; 1 for a model timed as a whole.
        cpu_ms: Median CPU time of one inference, of all threads, in milliseconds; None where it was not measured.
        cpu_ratio: CPU time of the first model divided by this one's, as `ratio`.
        prompt: For a decoder with a cache: time of a prompt; else None.
        token: For a decoder with a cache: time of one token behind that prompt; else None.
    """

    path: Path
    median_ms: float
    p10: float
    p90: float
    ratio: float
    rounds: int
    sure: bool = True
    runtime: str = ""
    parts: int = 1
    cpu_ms: float | None = None
    cpu_ratio: float | None = None
    prompt: Latency | None = None
    token: Latency | None = None

    def __repr__(self) -> str:
        """One line: the file, its median and how many times as fast as the first model it is."""
        sure = "" if self.sure else " (not sure)"
        return f"Latency({self.path.name}, {self.median_ms:.3g} ms, {self.ratio:.2f}×{sure})"

    def against(self, first: Latency) -> dict[str, float]:
        """Latency relative to the first model, with the keys that reports use.

        `ms` is the first model's median divided by the paired ratio. Medians of two models measured under changing load
        do not have the ratio that the pairs have.

        Args:
            first: Latency of the first model.

        Returns:
            "float_ms", "ms", "speedup" and "sure"; "float_cpu_ms" and "cpu_speedup" if CPU time was measured; and
            "parts" for models that were timed in parts.
        """
        found: dict[str, float] = {
            "float_ms": first.median_ms, "ms": first.median_ms / self.ratio, "speedup": self.ratio, "sure": self.sure,
        }  # fmt: skip
        if first.cpu_ms is not None and self.cpu_ratio is not None:
            found |= {"float_cpu_ms": first.cpu_ms, "cpu_speedup": self.cpu_ratio}
        return found | ({"parts": self.parts} if self.parts > 1 else {})


def bench(
    models: Sequence[Path | LeanModel],
    feeds: Sequence[Feed],
    *,
    threads: int = 2,
    rounds: int = 200,
    seconds: float = 2.0,
    precision: float | None = None,
    clear: float | None = None,
    faster: float | None = None,
    opened: OpenModels | None = None,
    providers: Sequence[str] = CPU,
) -> list[Latency]:
    """Measure the latency of models in ONNX Runtime, in interleaved runs.

    Every model runs once per round, on the same sample. Each round starts with another model. The ratio is the median
    of the ratios within each round. Models whose sessions do not fit the memory budget are timed part by part.

    Args:
        models: The models; the first is the one that ratios refer to.
        feeds: Samples.
        threads: CPU threads of each inference.
        rounds: Most rounds.
        seconds: Approximate time limit per model; at least 3 rounds run.
        precision: Stop as soon as every ratio is known to this relative precision (see `settled`); None to go on.
        clear: As in `settled`.
        faster: Stop as soon as the other models were faster than the first in all of 3 or more rounds, and so many
            times as fast in half of them.
        opened: Where sessions of files with as many threads are kept. If it keeps models whole, nothing is timed in
            parts.
        providers: Execution providers of ONNX Runtime.

    Raises:
        UsageError: There are no models or no samples.
        ModelError: A model does not load or run.
    """
    if not models or not feeds or rounds < 1:
        raise UsageError(f"nothing to time: {len(models)} models, {len(feeds)} samples, {rounds} rounds")
    paths = [model if isinstance(model, Path) else Path(model.label) for model in models]
    enough = partial(_enough, precision=precision, clear=clear, faster=faster)
    how: dict[str, Any] = {"threads": threads, "providers": providers}
    if (opened is None or not opened.whole) and exceed(models):
        lean = list(map(LeanModel.of, models))
        times, parts = time_in_parts(lean, feeds, rounds, seconds, enough, **how)
        return [replace(row, parts=parts) for row in latencies(paths, times)]
    runners = [
        opened.runner(model)
        if opened is not None and isinstance(model, Path) and opened.keeps(model) and opened.threads == threads
        else Runner(model, split=False, **how)
        for model in models
    ]
    cpu: list[list[float]] = []
    times = time_interleaved([runner.run for runner in runners], feeds, rounds, seconds, enough, cpu)
    return latencies(paths, times, cpu=cpu)


def exceed(models: Sequence[Path | LeanModel], share: int = _SHARE) -> bool:
    """Whether these models run in parts, and all their weights together take more than a share of the memory budget."""
    return is_large(models[0]) and sum(map(_bytes, models)) > memory.budget() // share


def bench_loaded(
    named: Sequence[tuple[Path, Loaded]],
    feeds: Sequence[Feed],
    rounds: int = 200,
    seconds: float = 2.0,
    precision: float | None = None,
    clear: float | None = None,
    faster: float | None = None,
) -> list[Latency]:
    """Measure the latency of loaded models of any runtime, as `bench` does."""
    enough = partial(_enough, precision=precision, clear=clear, faster=faster)
    cpu: list[list[float]] = []
    times = time_interleaved([runner.run for _, runner in named], feeds, rounds, seconds, enough, cpu)
    return latencies([path for path, _ in named], times, cpu=cpu)


def _enough(times: list[list[float]], precision: float | None, clear: float | None, faster: float | None) -> bool:
    """Whether timing may end after these rounds; the arguments are those of `bench`."""
    if faster is not None and len(times) >= LEAST_ROUNDS:
        ratios = np.array(times)[:, :1] / np.array(times)[:, 1:]
        if (np.median(ratios, axis=0) >= faster).all() and (ratios > 1).all():
            return True
    return precision is not None and len(times) % _CHECKED == 0 and settled(np.array(times), precision, clear)


def _bytes(model: Path | LeanModel) -> int:
    return model.weight_bytes if isinstance(model, LeanModel) else stored_bytes(model)


def latencies(
    models: Sequence[Path], times: Sequence[Sequence[float]], runtime: str = "",
    cpu: Sequence[Sequence[float]] | None = None,
) -> list[Latency]:  # fmt: skip
    """Latency of each model.

    Args:
        models: Their files.
        times: [rounds, models] milliseconds.
        runtime: Name and version of the runtime.
        cpu: [rounds, models] milliseconds of CPU time; None where it was not measured.
    """
    ms = np.array(times)
    ratios = np.median(ms[:, :1] / ms, axis=0)
    p10, median, p90 = np.percentile(ms, (10, 50, 90), axis=0)
    sure = is_sure(ms)
    rows = [
        Latency(
            path, float(median[i]), float(p10[i]), float(p90[i]), float(ratios[i]), len(times), bool(sure[i]), runtime
        )
        for i, path in enumerate(models)
    ]
    spent = np.array(cpu if cpu is not None else [])
    if spent.shape != ms.shape or not (spent > 0).all():  # a clock may be too coarse for short runs
        return rows
    shares = np.median(spent[:, :1] / spent, axis=0)
    medians = np.median(spent, axis=0)
    return [replace(row, cpu_ms=float(medians[i]), cpu_ratio=float(shares[i])) for i, row in enumerate(rows)]


def settled(ms: NDArray[np.float64], precision: float, clear: float | None = None) -> bool:
    """Whether the median ratio of every column to the first is known to a relative precision.

    Args:
        ms: [rounds, models] milliseconds.
        precision: Largest half width of the 95 % interval, relative to the ratio.
        clear: The same for a model that is surely faster or slower than the first, and is so in nearly every round;
            None for `precision`.
    """
    ratios = ms[:, :1] / ms
    middle, width = _notch(ratios)
    faster = np.mean(ratios > 1, axis=0)
    surely = is_sure(ms) & (np.maximum(faster, 1 - faster) >= _ONE_SIDED)
    most = np.where(surely, precision if clear is None else clear, precision)
    return bool((width <= most * middle).all())


def is_sure(ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each model is known to be faster or slower than the first, or equally fast.

    It is known if 1 lies outside two 95 % intervals around the median of the paired ratios, and the ratio of the
    medians is on the same side; or if all of them are within NOISE of 1. One interval takes the rounds as independent,
    the other allows for other load on the machine, which slows one model down for some rounds on end.

    Args:
        ms: [rounds, models] milliseconds.

    Returns:
        [models] booleans.
    """
    ratios = ms[:, :1] / ms
    middle, width = _notch(ratios)
    width = np.maximum(width, _width_of_batches(ratios))
    medians = np.median(ms, axis=0)
    others = medians[0] / medians
    low, high = np.minimum(middle - width, others), np.maximum(middle + width, others)
    alike = (low > 1 - NOISE) & (high < 1 + NOISE)
    found: NDArray[np.bool_] = (low > 1) | (high < 1) | alike
    return found


def _notch(ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each column, and half the width of a 95 % interval around it.

    The half width is 1.57 * (interquartile range) / sqrt(n): McGill, Tukey and Larsen 1978, Variations of Box Plots.
    """
    low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
    return middle, 1.57 * (high - low) / math.sqrt(len(ratios))


def _width_of_batches(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the width of a 95 % interval around each column, from the scatter of batches of consecutive rounds.

    The method of batch means, with medians, in 10 batches: Schmeiser 1982, Batch Size Effects in the Analysis of
    Simulation Output.
    """
    count = min(len(_STUDENT) + 1, len(ratios))
    if count < 2:
        return np.full(ratios.shape[1], np.inf)
    batches = np.stack([np.median(batch, axis=0) for batch in np.array_split(ratios, count)])
    found: NDArray[np.float64] = _STUDENT[count - 2] * batches.std(axis=0, ddof=1) / math.sqrt(count)
    return found
