"""Measure the error of a candidate per sample and output, with a weight for each that suits choosing among candidates.

The SQNR over all samples and outputs is what reports show. It is a poor guide for choices: one loud output hides the
others, and most of the noise comes from one or two samples. The mean of the samples' SQNR in dB is a poor guide too, if
some samples hold almost nothing, such as pictures without text for a text detector. Therefore each output counts
relative to its own scale, and each sample by the root mean square of its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.sqnr import CAP_DB, SqnrSum

Floats = NDArray[np.float64]
Sums = Mapping[str, SqnrSum]
"""Signal and noise energy by output name."""

_MOST_DB = 100.0  # limit per sample: an exact sample must not outweigh all others
_LEAST = 1e-6  # floor of an output's energy, relative to the loudest output's


def add_output(total: SqnrSum, wanted: NDArray[Any], got: NDArray[Any]) -> None:
    """Add a float output. If the shapes differ, its noise counts as large as its signal."""
    if wanted.shape == got.shape:
        total.add(wanted, got)
        return
    lost = SqnrSum()
    lost.add(wanted, np.zeros_like(wanted))
    if lost.noise == 0.0:  # nothing was wanted
        lost.add(np.zeros_like(got), got)
    total.join(lost)


def sums_of(wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]], names: Iterable[str]) -> Sums:
    """Signal and noise of the float outputs among `names`, on one sample."""
    found = {}
    for name in names:
        if wanted[name].dtype.kind == "f" and got[name].dtype.kind == "f":
            found[name] = SqnrSum()
            add_output(found[name], wanted[name], got[name])
    return found


def joined(samples: Iterable[Sums]) -> dict[str, SqnrSum]:
    """Signal and noise by output over several samples."""
    found: dict[str, SqnrSum] = {}
    for sums in samples:
        for name, one in sums.items():
            found.setdefault(name, SqnrSum()).join(one)
    return found


def balanced_db(outputs: Sums) -> float:
    """SQNR in dB in which each output counts relative to its own scale."""
    signal, noise = _balanced([outputs])
    return _db(float(signal[0]), float(noise[0]))


@dataclass(frozen=True, slots=True)
class CandidateError:
    """The error of a candidate: signal and noise of each float output on each sample."""

    samples: tuple[Sums, ...]

    @property
    def total(self) -> SqnrSum:
        """Signal and noise over all samples and outputs."""
        total = SqnrSum()
        for one in joined(self.samples).values():
            total.join(one)
        return total

    @property
    def each_db(self) -> tuple[float, ...]:
        """SQNR in dB of each sample, outputs relative to their own scales; _MOST_DB at most."""
        return tuple(min(_db(s, n), _MOST_DB) for s, n in zip(*_balanced(self.samples), strict=True))

    @property
    def weights(self) -> Floats:
        """Weight of each sample, 0..1: the root mean square of its outputs relative to the loudest sample's.

        This lies between equal weights, where almost empty samples decide, and weights by energy, where one or two do.
        """
        held = _balanced(self.samples)[0]
        loudest = held.max(initial=0.0)
        weights: Floats = np.sqrt(held / loudest) if loudest > 0 else np.ones_like(held)
        return weights

    @property
    def typical_db(self) -> float:
        """Weighted mean of the samples' SQNR in dB.

        It tells two candidates apart with few samples, unlike the total, whose noise comes mostly from one or two
        samples.
        """
        return float(np.average(self.each_db, weights=self.weights))

    def joined(self, other: CandidateError) -> CandidateError:
        """The errors on the samples of both."""
        return CandidateError((*self.samples, *other.samples))


def _balanced(samples: Sequence[Sums]) -> tuple[Floats, Floats]:
    """Signal [n] and noise [n] of each sample, each output divided by its signal over all samples."""
    names = list(dict.fromkeys(name for sums in samples for name in sums))
    nothing = SqnrSum()
    found = [[sums.get(name, nothing) for name in names] for sums in samples]
    signal = np.asarray([[one.signal for one in row] for row in found], np.float64).reshape(len(samples), len(names))
    noise = np.asarray([[one.noise for one in row] for row in found], np.float64).reshape(len(samples), len(names))
    scales = signal.sum(axis=0)
    floor = _LEAST * scales.max(initial=0.0)
    scales = np.maximum(scales, floor) if floor > 0 else np.ones_like(scales)
    return (signal / scales).sum(axis=1), (noise / scales).sum(axis=1)


def _db(signal: float, noise: float) -> float:
    one = SqnrSum(signal, noise)
    return max(-CAP_DB, min(one.db, CAP_DB))
