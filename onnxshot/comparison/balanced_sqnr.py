"""How close outputs come to the reference's, sample by sample and output by output, and what is typical of that.

SQNR over all samples and outputs is what a report tells. It is a poor guide for choices: one loud output hides the
others, and the error of all samples is mostly that of one or two. The mean of each sample's own dB is a poor guide too
where some samples hold almost nothing, as pictures without a line of text do for a detector of text. So each output
counts by its own scale, and each sample by the root mean square of what its outputs hold.
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
"""Signal and noise by output."""

_MOST_DB = 100.0  # of one sample: one that is exact must not outweigh all others
_LEAST = 1e-6  # of the energy of the loudest output: one below it is taken to be that loud


def add_output(total: SqnrSum, wanted: NDArray[Any], got: NDArray[Any]) -> None:
    """Add a float output. One of another shape counts as lost: its noise is as large as what it should hold."""
    if wanted.shape == got.shape:
        total.add(wanted, got)
        return
    lost = SqnrSum()
    lost.add(wanted, np.zeros_like(wanted))
    if lost.noise == 0.0:  # nothing was wanted
        lost.add(np.zeros_like(got), got)
    total.join(lost)


def sums_of(wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]], names: Iterable[str]) -> Sums:
    """What the float ones of these outputs hold, and how far they are off, on one sample."""
    found = {}
    for name in names:
        if wanted[name].dtype.kind == "f" and got[name].dtype.kind == "f":
            found[name] = SqnrSum()
            add_output(found[name], wanted[name], got[name])
    return found


def joined(samples: Iterable[Sums]) -> dict[str, SqnrSum]:
    """Over several samples."""
    found: dict[str, SqnrSum] = {}
    for sums in samples:
        for name, one in sums.items():
            found.setdefault(name, SqnrSum()).join(one)
    return found


def balanced_db(outputs: Sums) -> float:
    """SQNR in dB where each output counts by its own scale."""
    signal, noise = _balanced([outputs])
    return _db(float(signal[0]), float(noise[0]))


@dataclass(frozen=True, slots=True)
class CandidateError:
    """How close a candidate comes to the reference over the float outputs of some samples, sample by sample."""

    samples: tuple[Sums, ...]

    @property
    def total(self) -> SqnrSum:
        """Of all samples and outputs together."""
        total = SqnrSum()
        for one in joined(self.samples).values():
            total.join(one)
        return total

    @property
    def each_db(self) -> tuple[float, ...]:
        """SQNR of each sample, its outputs by their own scales; _MOST_DB at most."""
        return tuple(min(_db(s, n), _MOST_DB) for s, n in zip(*_balanced(self.samples), strict=True))

    @property
    def weights(self) -> Floats:
        """What each sample counts, 0..1: the root mean square of its outputs, against that of the loudest sample.

        It lies between counting all alike, where almost empty ones decide, and by energy, where one or two do.
        """
        held = _balanced(self.samples)[0]
        loudest = held.max(initial=0.0)
        weights: Floats = np.sqrt(held / loudest) if loudest > 0 else np.ones_like(held)
        return weights

    @property
    def typical_db(self) -> float:
        """Weighted mean over the samples.

        It tells by few samples which of two candidates is better: the noise of all together is mostly that of one or
        two of them.
        """
        return float(np.average(self.each_db, weights=self.weights))

    def joined(self, other: CandidateError) -> CandidateError:
        """Over the samples of both."""
        return CandidateError((*self.samples, *other.samples))


def _balanced(samples: Sequence[Sums]) -> tuple[Floats, Floats]:
    """(signal [n], noise [n]) of every sample, outputs as shares of what each holds in all samples together."""
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
