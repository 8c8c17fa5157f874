"""Compare candidate models on calibration samples and choose the best one.

Rules say which candidate should be better; the outputs of the network decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import CandidateError, Floats, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.execution.parallel import in_order
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Feed, Runnable, stored_bytes

__all__ = ["MAX_BYTES", "CandidateError", "measure_candidates", "race"]

MAX_BYTES = 200_000_000
"""Bytes of a model up to which candidates are tried: the model is copied for each candidate."""
_SIDE_BY_SIDE = 50_000_000  # bytes of a model above which models run one at a time

_CLEAR = 2.0  # standard errors
_SAME_DB = 0.2  # a difference that is not worth running more samples for
_FEWEST = 1.5  # effective samples needed to estimate their spread

_Outputs = Mapping[str, NDArray[Any]]


def race(
    reference: Runnable,
    candidates: Iterable[bytes],
    batches: Iterable[Sequence[Sample]],
    *,
    threads: int,
    leads: Sequence[float] = (),
) -> tuple[int, list[CandidateError]]:
    """Choose the candidate that is closest to the reference on a typical sample.

    Further batches of samples are drawn only while another candidate may still be better than the best so far.
    Candidates that are surely worse are not run again.

    Memory: all candidates, and what `measure_candidates` holds.

    Args:
        reference: The float model, a file or serialized.
        candidates: Serialized models.
        batches: Batches of samples.
        threads: CPU threads in total.
        leads: dB by which each candidate must be better than one without a lead; 0 for those not listed.

    Returns:
        Index of the best candidate, and the error of each.

    Raises:
        ModelError: A model does not run.
    """
    made: list[bytes] = []
    found: list[CandidateError] = []

    def kept() -> Iterator[bytes]:
        for candidate in candidates:
            made.append(candidate)
            yield candidate

    best, alive = 0, list[int]()
    for batch in batches:
        if not made:
            found = list(measure_candidates(reference, kept(), batch, threads=threads))
            alive = list(range(len(found)))
        else:
            more = measure_candidates(reference, (made[i] for i in alive), batch, threads=threads)
            for i, one in zip(alive, more, strict=True):
                found[i] = found[i].joined(one)
        handicaps = [*leads, *(0.0 for _ in found[len(leads) :])]
        best = max(alive, key=lambda i: found[i].typical_db - handicaps[i])
        ahead, weights = (found[best].each_db, handicaps[best]), found[best].weights
        alive = [i for i in alive if i == best or not _settled(ahead, (found[i].each_db, handicaps[i]), weights)]
        if len(alive) == 1:
            break
    return best, found


def _settled(one: tuple[Sequence[float], float], other: tuple[Sequence[float], float], weights: Floats) -> bool:
    """Whether the other candidate is surely not better by more than _SAME_DB, by the paired t statistic.

    Weighted samples count as Kish's effective sample size.
    """
    gains = np.subtract(one[0], other[0]) - (one[1] - other[1])
    count = float(weights.sum() ** 2 / np.square(weights).sum())
    mean = float(np.average(gains, weights=weights))
    if count < _FEWEST:
        return False
    variance = float(np.average(np.square(gains - mean), weights=weights)) * count / (count - 1)
    return mean + _SAME_DB > _CLEAR * math.sqrt(variance / count)


def measure_candidates(
    reference: Runnable, candidates: Iterable[bytes], samples: Sequence[Sample], *, threads: int
) -> Iterator[CandidateError]:
    """Measure how far each candidate is from the reference.

    Models run side by side, and the next candidate is drawn while earlier ones run.

    Memory: a few models, and as many sets of outputs of all samples.

    Args:
        reference: The float model, a file or serialized.
        candidates: Serialized models.
        samples: Samples to run.
        threads: CPU threads in total.

    Yields:
        The error of each candidate, in order.

    Raises:
        ModelError: A model does not run.
    """
    setup = comparison_setup(reference, samples[0].feed) if samples else ComparisonSetup(reference)
    workers = threads if _size(reference) <= _SIDE_BY_SIDE else 1
    each = max(1, threads // workers)
    wanted = list[_Outputs]()
    if setup.orders:  # its picks are imposed on the candidates
        wanted = _outputs((ComparisonSetup(setup.reference), setup.reference), feeds_of(samples), threads)
        feeds = [setup.feed(sample.feed, outputs) for sample, outputs in zip(samples, wanted, strict=True)]
    else:
        feeds = feeds_of(samples)

    def models() -> Iterator[tuple[ComparisonSetup, Runnable]]:
        if not wanted:
            yield ComparisonSetup(setup.reference), setup.reference
        yield from ((setup, candidate) for candidate in candidates)

    work = partial(_outputs, feeds=feeds, threads=each)
    with closing(in_order(work, models(), workers)) as found:
        wanted = wanted or next(found)
        for outputs in found:
            yield _compared(setup, wanted, outputs)


def _size(model: Runnable) -> int:
    if isinstance(model, LeanModel):
        return model.weight_bytes
    return stored_bytes(model) if isinstance(model, Path) else len(model)


def feeds_of(samples: Sequence[Sample]) -> list[Feed]:
    """The input arrays of each sample."""
    return [sample.feed for sample in samples]


def _outputs(model: tuple[ComparisonSetup, Runnable], feeds: Sequence[Feed], threads: int) -> list[_Outputs]:
    """The outputs of a model on every feed, in order."""
    runner = CandidateRunner(*model, threads=threads)
    return [runner.run(feed) for feed in feeds]


def _compared(setup: ComparisonSetup, wanted: Sequence[_Outputs], found: Sequence[_Outputs]) -> CandidateError:
    pairs = zip(wanted, found, strict=True)
    return CandidateError(tuple(sums_of(a, b, setup.compared(a, b)) for a, b in pairs))
