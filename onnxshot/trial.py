"""Try candidates on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import in_order
from onnxshot.targets.ort_runtime import Runner, stored_bytes

MAX_BYTES = 200_000_000
"""Weights of a model that is still tried: the model is copied for every candidate."""
_SIDE_BY_SIDE = 50_000_000  # bytes of a model above which no other is run beside it

_CLEAR = 2.0  # standard errors
_SAME_DB = 0.2  # what it is not worth running more samples for
_MOST_DB = 100.0  # of one sample: one that is exact must not outweigh all others

_Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tried:
    """How close a candidate comes to the reference over the float outputs of some samples.

    Attributes:
        total: of all samples together.
        each_db: SQNR of each sample. Its mean tells by few samples which of two candidates is better: the noise of all
            together is mostly that of one or two of them.
    """

    total: SqnrSum
    each_db: tuple[float, ...]

    @property
    def typical_db(self) -> float:
        """Mean over the samples."""
        return float(np.mean(self.each_db))

    def joined(self, other: Tried) -> Tried:
        """Over the samples of both."""
        total = SqnrSum()
        total.join(self.total)
        total.join(other.total)
        return Tried(total, (*self.each_db, *other.each_db))


def race(
    reference: Path | bytes,
    candidates: Iterable[bytes],
    batches: Iterable[Sequence[Sample]],
    *,
    threads: int,
    leads: Sequence[float] = (),
) -> tuple[int, list[Tried]]:
    """(number of the best candidate, how close each came), by what is typical of a sample.

    leads: dB by which each must be better than one without a lead. A batch of samples is drawn only as long as another
    may still be better than the best so far; those that surely are not are not run again. Held at any time: all
    candidates, and what `tried` holds. Raises ModelError where one does not run.
    """
    made: list[bytes] = []
    found: list[Tried] = []

    def kept() -> Iterator[bytes]:
        for candidate in candidates:
            made.append(candidate)
            yield candidate

    best, alive = 0, list[int]()
    for batch in batches:
        if not made:
            found = list(tried(reference, kept(), batch, threads=threads))
            alive = list(range(len(found)))
        else:
            more = tried(reference, (made[i] for i in alive), batch, threads=threads)
            for i, one in zip(alive, more, strict=True):
                found[i] = found[i].joined(one)
        handicaps = [*leads, *(0.0 for _ in found[len(leads) :])]
        best = max(alive, key=lambda i: found[i].typical_db - handicaps[i])
        ahead = (found[best].each_db, handicaps[best])
        alive = [i for i in alive if i == best or not _settled(ahead, (found[i].each_db, handicaps[i]))]
        if len(alive) == 1:
            break
    return best, found


def _settled(one: tuple[Sequence[float], float], other: tuple[Sequence[float], float]) -> bool:
    """Whether chance alone does not hide that the other is better by more than _SAME_DB (the paired t statistic)."""
    gains = np.subtract(one[0], other[0]) - (one[1] - other[1])
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return float(gains.mean()) + _SAME_DB > _CLEAR * error


def tried(
    reference: Path | bytes, candidates: Iterable[bytes], samples: Sequence[Sample], *, threads: int
) -> Iterator[Tried]:
    """How close each candidate comes to the reference, a file or a serialized model as they are.

    Models run beside each other, and one is run while the next is made: candidates are drawn as they run. Held at any
    time: a few models, and the outputs of the samples as often. Raises ModelError where one does not run.
    """

    def models() -> Iterator[Path | bytes]:
        yield reference
        yield from candidates

    workers = threads if _size(reference) <= _SIDE_BY_SIDE else 1
    work = partial(_outputs, samples=samples, threads=max(1, threads // workers))
    with closing(in_order(work, models(), workers)) as found:
        wanted = next(found)
        for outputs in found:
            yield _compared(wanted, outputs)


def _size(model: Path | bytes) -> int:
    return stored_bytes(model) if isinstance(model, Path) else len(model)


def _outputs(model: Path | bytes, samples: Sequence[Sample], threads: int) -> list[_Outputs]:
    """The outputs of a model on every sample, in order."""
    runner = Runner(model, threads=threads)
    return [runner.run(sample.feed) for sample in samples]


def _compared(wanted: Sequence[_Outputs], found: Sequence[_Outputs]) -> Tried:
    total, each = SqnrSum(), []
    for expected, outputs in zip(wanted, found, strict=True):
        own = SqnrSum()
        for name, value in outputs.items():
            if value.dtype.kind == "f" and value.shape == expected[name].shape:
                own.add(expected[name], value)
        total.join(own)
        each.append(min(own.db, _MOST_DB))
    return Tried(total, tuple(each))
