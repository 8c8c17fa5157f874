"""Paired latency: models run in turns on the same feeds, so that what else the machine does hits all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import UsageError
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.interleaved_timing import time_interleaved
from onnxshot.runtimes.ort_runtime import CPU, Feed, Runner

_CHECKED = 10  # rounds between two looks at whether it is enough


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one run of one model; ratio: time of the first model over this one's, above 1 is faster.

    sure: whether the rounds tell which of the two is faster, or that they are alike: see `is_sure`. runtime: in which
    it was timed, such as 'onnxruntime 1.22.0'; empty where nobody asked.
    """

    path: Path
    median_ms: float
    p10: float
    p90: float
    ratio: float
    rounds: int
    sure: bool = True
    runtime: str = ""

    def against(self, first: Latency) -> dict[str, float]:
        """float_ms, ms, speedup and sure, as reports hold them: ms is the first one's median over the paired ratio.

        Medians of two columns do not have the ratio that the pairs have where other load comes and goes.
        """
        return {
            "float_ms": first.median_ms, "ms": first.median_ms / self.ratio, "speedup": self.ratio, "sure": self.sure,
        }  # fmt: skip


def bench(
    models: Sequence[Path],
    feeds: Sequence[Feed],
    *,
    threads: int = 2,
    rounds: int = 200,
    seconds: float = 2.0,
    precision: float | None = None,
    providers: Sequence[str] = CPU,
) -> list[Latency]:
    """Time the models in turns, every one once a round on the same feed; each round starts with the next one.

    Ends after `rounds` rounds, or when about `seconds` per model have gone, but not before 3 rounds; with `precision`
    also as soon as every ratio is known to that share (see `settled`). The ratio is the median of the ratios within
    each round. Raises ModelError where a model does not load or run.
    """
    if not models or not feeds or rounds < 1:
        raise UsageError(f"nothing to time: {len(models)} models, {len(feeds)} samples, {rounds} rounds")
    runners = [Runner(path, threads=threads, providers=providers) for path in models]
    return bench_loaded(list(zip(models, runners, strict=True)), feeds, rounds, seconds, precision)


def bench_loaded(
    named: Sequence[tuple[Path, Loaded]],
    feeds: Sequence[Feed],
    rounds: int = 200,
    seconds: float = 2.0,
    precision: float | None = None,
) -> list[Latency]:
    """What `bench` does, of models that are loaded, in any runtime."""
    def enough(taken: list[list[float]]) -> bool:
        return precision is not None and len(taken) % _CHECKED == 0 and settled(np.array(taken), precision)

    taken = time_interleaved([runner.run for _, runner in named], feeds, rounds, seconds, enough)
    return latencies([path for path, _ in named], taken)


def latencies(models: Sequence[Path], taken: Sequence[Sequence[float]], runtime: str = "") -> list[Latency]:
    """What milliseconds [rounds, models] say of each model; the ratio is the median of the ratios within each round."""
    ms = np.array(taken)
    ratios = np.median(ms[:, :1] / ms, axis=0)
    p10, median, p90 = np.percentile(ms, (10, 50, 90), axis=0)
    sure = is_sure(ms)
    return [
        Latency(
            path, float(median[i]), float(p10[i]), float(p90[i]), float(ratios[i]), len(taken), bool(sure[i]), runtime
        )
        for i, path in enumerate(models)
    ]


def settled(ms: NDArray[np.float64], precision: float) -> bool:
    """Whether the median ratio of the first column to every other is known to `precision`, a share; ms [rounds, n].

    The width is that of `_notch`.
    """
    middle, width = _notch(ms[:, :1] / ms)
    return bool((width <= precision * middle).all())


def is_sure(ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n] whether a column is known to be faster or slower than the first one, or as fast; ms [rounds, n].

    It is where a 95 % interval about the median of the paired ratios does not hold 1, and the ratio of the medians lies
    on the same side; or where all of that is within NOISE of 1.
    """
    middle, width = _notch(ms[:, :1] / ms)
    medians = np.median(ms, axis=0)
    others = medians[0] / medians
    low, high = np.minimum(middle - width, others), np.maximum(middle + width, others)
    alike = (low > 1 - NOISE) & (high < 1 + NOISE)
    found: NDArray[np.bool_] = (low > 1) | (high < 1) | alike
    return found


def _notch(ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each column, and half the width of a 95 % interval about it.

    1.57 * (interquartile range) / sqrt(n): McGill, Tukey and Larsen 1978, Variations of Box Plots, on notches.
    """
    low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
    return middle, 1.57 * (high - low) / math.sqrt(len(ratios))

NOISE = 0.02
"""Two runs of the same file differ by about this share when they are timed in turns; a file may grow by it too."""
