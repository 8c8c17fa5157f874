"""Streaming observation of one tensor: flat memory, exact extremes, a histogram of a subsample."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.stats import NO_STATS, TensorStats, histogram_of, merge, to_units
from onnxshot.maths.scheme import NotFinite

__all__ = ["NotFinite", "Observer"]

MAX_PER_SAMPLE = 16384


class Observer:
    """Statistics of one tensor, fed one sample at a time; holds 16 kB at most, and nothing of the samples.

    max_per_sample: most elements of one sample that enter the histogram, taken at a fixed stride.
    channels: also keep the largest absolute value of each index of the last axis, whose length must not change.
    """

    def __init__(self, max_per_sample: int = MAX_PER_SAMPLE, *, channels: bool = False) -> None:
        self.max_per_sample = max_per_sample
        self.channels = channels
        self._stats = NO_STATS

    def update(self, x: NDArray[Any]) -> None:
        """Add one sample of any shape; numbers of any type, seen as float32. An empty array changes nothing.

        Raises NotFinite on NaN or infinity (also on float64 beyond float32); the statistics are then as before.
        """
        if x.size == 0:
            return
        values = np.asarray(x, dtype=np.float32).reshape(-1)
        low, high = float(values.min()), float(values.max())  # NaN propagates, infinity is an extreme
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NotFinite("holds NaN" if math.isnan(low) else "holds infinity")
        picked = values[:: stride(values.size, self.max_per_sample)]
        absmax: tuple[float, ...] = ()
        if self.channels and x.ndim:
            absmax = tuple(np.abs(values.reshape(-1, x.shape[-1])).max(axis=0).tolist())
        sample = TensorStats(values.size, 1, low, high, to_units(low), to_units(high), histogram_of(picked), absmax)
        self._stats = merge(self._stats, sample)

    def stats(self) -> TensorStats:
        """Statistics of all samples so far; count is 0 when none had an element."""
        return self._stats


def stride(size: int, most: int) -> int:
    """Smallest step that takes at most ``most`` of ``size`` elements and is coprime with ``size``.

    A step that shares a factor with a dimension would see only some channels or columns; one that is coprime with
    their product visits them all in turn.
    """
    step = -(-size // most)
    while math.gcd(step, size) != 1:
        step += 1
    return step
