"""Measure the error of a candidate per sample and output, with a weight for each that suits choosing among candidates.

The SQNR over all samples and outputs is what reports show. It is a poor guide for choices: one loud output hides the
others, and most of the noise comes from one or two samples. The mean of the samples' SQNR in dB is a poor guide too, if
some samples hold almost nothing, such as pictures without text for a text detector. Therefore each output counts
relative to its own scale, and each sample by the root mean square of its outputs. Samples that hold next to nothing do
not count at all. Outputs that are the same on all samples add nothing to what a sample holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.sqnr import CAP_DB, SqnrSum

Floats = NDArray[np.float64]
Sums = Mapping[str, SqnrSum]
"""Signal and noise energy by output name."""

_MOST_DB = 100.0  # limit per sample: an exact sample must not outweigh all others
_LEAST = 2.0**-46
"""Floor of an output's energy per value, relative to the loudest output's: the square of a rounding error of float32.

What is quieter may be the rounding error of values as large as the loudest output's.
"""
_SILENT = 1 / 128
"""Samples quieter than this share of the loudest sample, by root mean square, do not count.

It is one step of 8 bits: of a model whose ranges cover the loudest sample, a quieter one is no more than rounding.
"""


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


def worst_db(outputs: Sums) -> float:
    """SQNR in dB of all outputs together, or of the worst output, whichever is lower.

    It is what the verdict of a report goes by. Outputs that are no more than rounding errors of louder ones are not
    looked at alone.
    """
    return worst_of(outputs)[1]


def worst_of(outputs: Sums) -> tuple[str, float]:
    """The output that `worst_db` goes by, and that SQNR in dB; no name where it goes by all outputs together."""
    total = SqnrSum()
    for one in outputs.values():
        total.join(one)
    least = _LEAST * max((_power(one) for one in outputs.values()), default=0.0)
    loud = [(name, one.db) for name, one in outputs.items() if _power(one) > least]
    return min([("", total.db), *(loud if len(outputs) > 1 else [])], key=itemgetter(1))


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
    def worst_db(self) -> float:
        """SQNR in dB over all samples, of all outputs together or of the worst one, whichever is lower."""
        return worst_db(joined(self.samples))

    @property
    def balanced_db(self) -> float:
        """SQNR in dB over all samples, in which each output counts relative to its own scale."""
        return balanced_db(joined(self.samples))

    @property
    def each_db(self) -> tuple[float, ...]:
        """SQNR in dB of each sample, outputs relative to their own scales; _MOST_DB at most."""
        return tuple(min(_db(s, n), _MOST_DB) for s, n in zip(*_balanced(self.samples), strict=True))

    @property
    def weights(self) -> Floats:
        """Weight of each sample, 0..1: the root mean square of its outputs relative to the loudest sample's.

        This lies between equal weights, where almost empty samples decide, and weights by energy, where one or two do.
        A sample that holds next to nothing has weight 0.
        """
        held = _balanced(self.samples)[0]
        loudest = held.max(initial=0.0)
        if not loudest > 0:
            return np.ones_like(held)
        level: Floats = np.sqrt(held / loudest)
        return np.where(level < _SILENT, 0.0, level)

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


def noise_shares(outputs: Sums) -> Floats:
    """Noise energy over signal energy of each output.

    That of an output that holds next to nothing is relative to the loudest output.
    """
    signal, noise, counts = _tables([outputs])
    shares: Floats = (noise / _scales(signal, counts))[0]
    return shares


def _balanced(samples: Sequence[Sums]) -> tuple[Floats, Floats]:
    """Signal [n] and noise [n] of each sample, each output divided by its scale.

    Of outputs that are the same on all samples, only the noise counts: what they hold tells no samples apart.
    """
    signal, noise, counts = _tables(samples)
    scales = _scales(signal, counts)
    varies = (signal != signal[:1]).any(axis=0)
    varies |= ~varies.any()
    return (signal / scales)[:, varies].sum(axis=1), (noise / scales).sum(axis=1)


def _scales(signal: Floats, counts: Floats) -> Floats:
    """The signal [outputs] of each output over all samples; of one that holds next to nothing, the loudest one's."""
    own, count = signal.sum(axis=0), counts.sum(axis=0)
    loudest = (own / np.maximum(count, 1.0)).max(initial=0.0) * count
    scales: Floats = np.where(own > _LEAST * loudest, own, loudest)
    scales[scales == 0] = 1.0
    return scales


def _tables(samples: Sequence[Sums]) -> tuple[Floats, Floats, Floats]:
    """Signal, noise and number of values: [samples, outputs] each."""
    names = list(dict.fromkeys(name for sums in samples for name in sums))
    nothing = SqnrSum()
    rows = [[sums.get(name, nothing) for name in names] for sums in samples]
    found = np.asarray([[(one.signal, one.noise, one.count) for one in row] for row in rows], np.float64)
    signal, noise, counts = np.moveaxis(found.reshape(len(samples), len(names), 3), -1, 0)
    return signal, noise, counts


def _power(one: SqnrSum) -> float:
    return one.signal / one.count if one.count else 0.0


def _db(signal: float, noise: float) -> float:
    one = SqnrSum(signal, noise)
    return max(-CAP_DB, min(one.db, CAP_DB))
