"""Signal-to-quantization-noise ratio (SQNR) in dB: 10 * log10(sum(ref**2) / sum((ref - cand)**2))."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAP_DB = 200.0  # stands for infinity, which JSON lacks; float32 data reaches about 150 dB
_CHUNK = 1 << 16  # elements: fits the cache, and few enough for sums in float32
_LEAST, _MOST = 1e-24, 1e36  # sums of squares in this range have a relative error of at most 1e-6 in float32


@dataclass(slots=True)
class SqnrSum:
    """SQNR over many pairs of arrays.

    Energies are added up, so arrays with more or larger values weigh more.

    Attributes:
        signal: sum of ref**2.
        noise: sum of (ref - cand)**2.
        count: number of elements.

    Example:
        >>> total = SqnrSum()
        >>> total.add(np.array([1.0, 2.0]), np.array([1.0, 2.1]))
        >>> round(total.db, 1)
        27.0
    """

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add one pair of arrays.

        Where both values are NaN, or infinite with the same sign, they count as equal and add no signal. Where only one
        of them is not finite, or the infinities have different signs, the noise becomes infinite.

        Args:
            reference: of any shape.
            candidate: of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"shapes differ: {list(reference.shape)} and {list(candidate.shape)}")
        ref_flat, cand_flat = reference.reshape(-1), candidate.reshape(-1)
        for start in range(0, ref_flat.size, _CHUNK):
            if self._add_float32(ref_flat[start : start + _CHUNK], cand_flat[start : start + _CHUNK]):
                continue
            ref = ref_flat[start : start + _CHUNK].astype(np.float64)
            error = cand_flat[start : start + _CHUNK].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(ref, error, out=error)
                noise = float(np.dot(error, error))
            if not math.isfinite(noise) or not np.isfinite(ref).all():
                ref, noise = _non_finite(ref, cand_flat[start : start + _CHUNK].astype(np.float64))
            self.noise += noise
            self.signal += float(np.dot(ref, ref))
        self.count += ref_flat.size

    def join(self, other: SqnrSum) -> None:
        """Add the sums of another object, which another thread or worker process has made."""
        self.signal += other.signal
        self.noise += other.noise
        self.count += other.count

    def _add_float32(self, ref: NDArray[Any], cand: NDArray[Any]) -> bool:
        """Add a chunk in float32, three times as fast as in float64; False where the sums would lose precision."""
        if ref.dtype != np.float32 or cand.dtype != np.float32:
            return False
        with np.errstate(invalid="ignore", over="ignore"):
            error = ref - cand
            noise, signal = float(np.dot(error, error)), float(np.dot(ref, ref))
        if not (_LEAST < noise < _MOST and _LEAST < signal < _MOST):
            return False
        self.noise += noise
        self.signal += signal
        return True

    @property
    def db(self) -> float:
        """SQNR in dB, from -CAP_DB (noise on a reference of zeros, or infinite noise) to CAP_DB (no error)."""
        if self.noise == 0.0:
            return CAP_DB
        if self.signal == 0.0 or not math.isfinite(self.noise):
            return -CAP_DB
        return max(-CAP_DB, min(CAP_DB, 10.0 * (math.log10(self.signal) - math.log10(self.noise))))


def sqnr_db(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the SQNR of one pair of arrays in dB, clipped to -CAP_DB..CAP_DB; see `SqnrSum`.

    Args:
        reference: of any shape.
        candidate: of the same shape.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> round(sqnr_db(np.array([1.0, 2.0]), np.array([1.0, 2.1])), 1)
        27.0
    """
    total = SqnrSum()
    total.add(reference, candidate)
    return total.db


def _non_finite(ref: NDArray[np.float64], cand: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """For a chunk with infinities or NaN: the reference with zeros in their place, and the noise."""
    finite = np.isfinite(ref) & np.isfinite(cand)
    same = (ref == cand) | (np.isnan(ref) & np.isnan(cand))
    error = np.where(finite, ref, 0.0) - np.where(finite, cand, 0.0)
    noise = float(np.dot(error, error)) if bool((finite | same).all()) else math.inf
    return np.where(finite, ref, 0.0), noise
