"""Decide when calibration has seen enough samples: when new samples would hardly be clipped by the ranges so far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.observers import Glimpse

LEAST = 32
"""Samples before which no checkpoint counts as quiet."""
MEAN_DB = 0.05
"""Most that clipping may add to the 8-bit rounding noise at a quiet checkpoint, in dB, on the mean over all tensors."""
MAX_DB = 1.0
"""The same for the tensor with the largest increase."""
_START = 16
_LEVELS = 255.0


class Settling:
    """Watches the ranges of n tensors until they have settled.

    There are checkpoints at 16, 24, 32, 48, 64, 96, ... samples. Each one saves the ranges. At the next one, the
    samples in between are compared with the saved ranges: the row extremes outside a range give the squared error that
    clipping would cause, which is compared with the 8-bit rounding noise of that range, step**2 / 12.

    A checkpoint is quiet where clipping would add at most MEAN_DB on the mean over the tensors, and at most MAX_DB in
    any of them. The ranges have settled at the second quiet checkpoint in a row, from LEAST samples on. An outlier in
    about the second half of the samples therefore prolongs the run.

    Args:
        n: number of tensors.
    """

    def __init__(self, n: int) -> None:
        self._low, self._high = np.full(n, np.inf), np.full(n, -np.inf)  # now
        self._old_low, self._old_high = self._low.copy(), self._high.copy()  # at the checkpoint
        self._clipped = np.zeros(n)
        self._count = np.zeros(n)
        self._samples = self._quiet = 0
        self._checkpoints = _checkpoints()
        self._next = next(self._checkpoints)

    def add(self, seen: Glimpse) -> bool:
        """Add the glimpse of a sample, and return whether the ranges have settled."""
        sizes, lows, highs = seen.sizes, seen.lows.astype(np.float64), seen.highs.astype(np.float64)
        if self._samples >= _START:
            self._count += sizes
            ends = np.cumsum(seen.rows)
            for i in np.flatnonzero((sizes > 0) & ((lows < self._old_low) | (highs > self._old_high))).tolist():
                rows = slice(ends[i] - seen.rows[i], ends[i])
                over = np.maximum(seen.tops[rows] - self._old_high[i], 0.0)
                under = np.maximum(self._old_low[i] - seen.bottoms[rows], 0.0)
                self._clipped[i] += float(over @ over + under @ under)
        self._low, self._high = np.minimum(self._low, lows), np.maximum(self._high, highs)
        self._samples += 1
        if self._samples < self._next:
            return False
        self._next = next(self._checkpoints)
        added = self._added_db()
        self._old_low, self._old_high = self._low, self._high
        self._clipped[:] = self._count[:] = 0.0
        quiet = self._samples >= LEAST and bool(added.mean() <= MEAN_DB) and bool(added.max() <= MAX_DB)
        self._quiet = self._quiet + 1 if quiet else 0
        return self._quiet == 2

    def _added_db(self) -> NDArray[np.float64]:
        """What clipping since the last checkpoint would add to the rounding noise, in dB; float64 [n]."""
        # The range of an 8-bit tensor includes zero (ONNX QuantizeLinear: the zero point is one of the codes).
        span = np.maximum(self._old_high, 0.0) - np.minimum(self._old_low, 0.0)
        noise = (np.maximum(span, 1e-30) / _LEVELS) ** 2 / 12.0
        # A tensor that first appeared since then has an infinite clipping error, and so has not settled.
        added: NDArray[np.float64] = 10.0 * np.log10(1.0 + self._clipped / np.maximum(self._count, 1.0) / noise)
        return added


def stops(total: int) -> Iterator[int]:
    """Numbers of samples at which a run over `total` may end: the checkpoints that may settle it, and `total`."""
    quiet = (samples for samples in _checkpoints() if samples >= LEAST)
    next(quiet)
    yield from itertools.takewhile(lambda samples: samples < total, quiet)
    yield total


def _checkpoints() -> Iterator[int]:
    """Numbers of samples at which checkpoints lie: 16, 24, 32, 48, 64, 96, ..."""
    for power in itertools.count():
        yield _START << power
        yield (_START << power) * 3 // 2
