"""Find outliers among samples: one that alone widens the range of a tensor, or one that is blank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.observers import Glimpse
from onnxshot.calibration.stats import TensorStats

STRETCH = 2.0
"""A sample is an outlier where its largest absolute value in a tensor is this many times that of any other sample."""
_LEAST_SAMPLES = 8  # fewer samples are too few to call one an outlier


class Outliers:
    """Watches n tensors for samples that alone determine a range; keeps two numbers and a name per tensor.

    Args:
        n: number of tensors.
    """

    def __init__(self, n: int) -> None:
        self._most = np.zeros(n)
        self._second = np.zeros(n)
        self._names = np.full(n, "", dtype=object)
        self._samples = 0

    def add(self, seen: Glimpse, name: str) -> None:
        """Add the glimpse of a sample of this name."""
        absmax = np.where(seen.sizes > 0, np.maximum(-seen.lows, seen.highs), 0.0).astype(np.float64)
        first = absmax > self._most
        self._second = np.where(first, self._most, np.maximum(self._second, absmax))
        self._most = np.where(first, absmax, self._most)
        self._names[first] = name
        self._samples += 1

    def add_known(self, known: Sequence[TensorStats]) -> None:
        """Add samples of another pass, of which only the statistics of each tensor are left. None of them is found."""
        absmax = np.array([max(-stats.low, stats.high) if stats.count else 0.0 for stats in known])
        first = absmax > self._most
        self._second = np.where(first, self._most, np.maximum(self._second, absmax))
        self._most = np.where(first, absmax, self._most)
        self._names[first] = ""
        self._samples += max((stats.samples for stats in known), default=0)

    def merged(self, other: Outliers) -> Outliers:
        """The result of watching the samples of both."""
        both = Outliers(len(self._most))
        theirs = other._most > self._most
        both._most = np.where(theirs, other._most, self._most)
        least = np.where(theirs, self._most, other._most)
        both._second = np.maximum(least, np.maximum(self._second, other._second))
        both._names = np.where(theirs, other._names, self._names)
        both._samples = self._samples + other._samples
        return both

    def found(self) -> dict[str, list[tuple[int, float]]]:
        """Outliers, the worst first: sample name -> pairs of a tensor's number and a ratio.

        The ratio is the sample's largest absolute value over that of all other samples.
        """
        if self._samples < _LEAST_SAMPLES:
            return {}
        times = np.divide(self._most, self._second, out=np.zeros_like(self._most), where=self._second > 0)
        found: dict[str, list[tuple[int, float]]] = {}
        for i in np.argsort(-times, kind="stable").tolist():
            if times[i] >= STRETCH and self._names[i]:
                found.setdefault(self._names[i], []).append((i, float(times[i])))
        return found


def is_blank(feed: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every input with more than one element is constant, such as a black picture or silence."""
    large = [x for x in feed.values() if x.size > 1]
    return bool(large) and all(x.dtype.kind not in "OUST" and bool((x == x.flat[0]).all()) for x in large)
