"""Find channels of one output that are far quieter than others, such as scores beside boxes in pixels.

Their error is invisible in the SQNR of the whole output. Channels along an axis form two parts if some of them stay
below 1/30 of the loudest channel's peak in every sample. Outputs within 0..1 have a single unit: their quiet channels
are rare classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.sqnr import SqnrSum

_APART = 30.0
_MOST_CHANNELS = 1024  # a longer axis holds positions or words, not channels
_MOST = 1 << 24  # most elements of an output that is examined
_LEAST_SAMPLES = 2  # a single sample does not show what its channels have in common

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """The quiet channels of an output.

    Attributes:
        axis: Axis of the channels.
        quiet: Number of quiet channels.
        channels: Number of channels.
        quiet_db: SQNR in dB of the quiet channels.
        loud_db: SQNR in dB of the others.
    """

    axis: int
    quiet: int
    channels: int
    quiet_db: float
    loud_db: float


@dataclass(slots=True)
class Parts:
    """Accumulated error per channel, along the second and the last axis of one output."""

    _axes: dict[int, _Axis] = field(default_factory=dict)
    _rank: int = 0
    _wide: bool = False  # some value is outside 0..1
    _lost: bool = False

    def add(self, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        """Add the values of both models on one sample; the shapes must be equal."""
        self._lost |= wanted.ndim < 2 or not 0 < wanted.size <= _MOST or self._rank not in (0, wanted.ndim)
        if self._lost:
            return
        self._rank = wanted.ndim
        ref = wanted.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = ref - got.astype(np.float64)
        if not (np.isfinite(ref).all() and np.isfinite(error).all()):
            self._lost = True
            return
        self._wide |= bool(ref.min() < 0 or ref.max() > 1)
        for axis in {1, wanted.ndim - 1}:
            self._axes.setdefault(axis, _Axis()).add(ref, error, axis)

    @property
    def found(self) -> Part | None:
        """The two parts of the axis whose worse part has the lowest SQNR; None if there is only one part."""
        if self._lost or not self._wide:
            return None
        parts = [part for axis, sums in self._axes.items() if (part := sums.part(axis)) is not None]
        return min(parts, key=lambda part: min(part.quiet_db, part.loud_db), default=None)


@dataclass(slots=True)
class _Axis:
    signal: Floats | None = None
    noise: Floats | None = None
    loud: Floats | None = None
    samples: int = 0
    lost: bool = False

    def add(self, ref: Floats, error: Floats, axis: int) -> None:
        count = ref.shape[axis]
        self.lost |= not 1 < count <= _MOST_CHANNELS or (self.signal is not None and len(self.signal) != count)
        if self.lost:
            return
        others = tuple(i for i in range(ref.ndim) if i != axis)
        peaks = np.abs(ref).max(axis=others)
        nothing = np.zeros(count)
        with np.errstate(over="ignore"):
            self.signal = (nothing if self.signal is None else self.signal) + np.square(ref).sum(axis=others)
            self.noise = (nothing if self.noise is None else self.noise) + np.square(error).sum(axis=others)
        self.loud = (nothing if self.loud is None else self.loud) + (peaks > peaks.max() / _APART)
        self.samples += 1

    def part(self, axis: int) -> Part | None:
        if self.lost or self.signal is None or self.noise is None or self.loud is None:
            return None
        quiet = self.loud == 0
        steady = bool((quiet | (2 * self.loud > self.samples)).all())
        if self.samples < _LEAST_SAMPLES or not steady or not quiet.any() or not self.signal[quiet].sum() > 0:
            return None
        db = [SqnrSum(float(self.signal[at].sum()), float(self.noise[at].sum())).db for at in (quiet, ~quiet)]
        return Part(axis, int(quiet.sum()), len(quiet), *db)
