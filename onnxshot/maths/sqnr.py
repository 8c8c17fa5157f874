"""Signal to quantization noise, in decibels: 10 * log10(sum(ref**2) / sum((ref - cand)**2))."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAP_DB = 200.0  # "no error" and "no signal" as numbers that JSON can hold; float32 data reaches about 150
_CHUNK = 1 << 16  # stays in the cache; sums of more would lose precision in float32
_LEAST, _MOST = 1e-24, 1e36  # of a sum of squares that float32 holds to a millionth


@dataclass(slots=True)
class SqnrSum:
    """SQNR over many arrays: adds energies, so large outputs and loud samples weigh more. Sums chunks in float64."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add one pair of equal shape. Infinities of the same sign in both count as equal and carry no signal.

        A value that is not finite in one only, or is NaN in the candidate, is infinite noise. Raises ValueError.
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
        """Add what was summed up elsewhere."""
        self.signal += other.signal
        self.noise += other.noise
        self.count += other.count

    def _add_float32(self, ref: NDArray[Any], cand: NDArray[Any]) -> bool:
        """Add a chunk of float32 without widening it, three times as fast; False where float32 cannot hold the sums."""
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
        """SQNR in dB within -CAP_DB..CAP_DB: CAP_DB without any error, -CAP_DB for noise on a zero reference."""
        if self.noise == 0.0:
            return CAP_DB
        if self.signal == 0.0 or not math.isfinite(self.noise):
            return -CAP_DB
        return max(-CAP_DB, min(CAP_DB, 10.0 * (math.log10(self.signal) - math.log10(self.noise))))


def sqnr_db(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """SQNR of one pair in dB, capped at CAP_DB both ways; see SqnrSum."""
    total = SqnrSum()
    total.add(reference, candidate)
    return total.db


def _non_finite(ref: NDArray[np.float64], cand: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Split a chunk that is not all finite into (reference with zeros for infinities and NaN, noise)."""
    finite = np.isfinite(ref) & np.isfinite(cand)
    same = (ref == cand) | (np.isnan(ref) & np.isnan(cand))
    error = np.where(finite, ref, 0.0) - np.where(finite, cand, 0.0)
    noise = float(np.dot(error, error)) if bool((finite | same).all()) else math.inf
    return np.where(finite, ref, 0.0), noise
