"""Compare candidate models with a reference on samples, and choose the best one.

Rules say which candidate should be better; the outputs of the network decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import CandidateError, Floats, Sums, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Feed, Runnable, stored_bytes
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.spool import Spool

__all__ = ["CandidateError", "Judge", "Samples", "candidate_of", "measure_candidates"]

_CLEAR = 2.0  # standard errors
_SAME_DB = 0.2  # a difference that is not worth running more samples for
_FEWEST = 1.5  # effective samples needed to estimate their spread
_HELD = 4  # share of `memory.held_bytes()` that outputs of the reference may take
_SERIALIZED = 4  # share of `memory.part_bytes()` up to which a candidate is held serialized

_Outputs = Mapping[str, NDArray[Any]]


class Samples(Protocol):
    """Samples by number: a `Dataset` or a list."""

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(slots=True)
class _Candidate:
    """A model that is compared, and its session where that is kept for further samples."""

    model: Runnable
    runner: CandidateRunner | None = None


@dataclass
class Judge:
    """Measures how far candidates are from one reference, which is run once on each sample.

    Memory: outputs of the reference on all samples that were used, up to a share of `memory.held_bytes()`, and the rest
    in a temporary file. Of models that fit the budget side by side the sessions of a race; else one session, of a part.

    Attributes:
        reference: The float model.
        samples: What models are compared on.
        threads: CPU threads in total.
    """

    reference: Runnable
    samples: Samples
    threads: int
    _wanted: Spool = field(init=False, default_factory=lambda: Spool(memory.held_bytes() // _HELD))
    _known: dict[int, tuple[str, ...]] = field(init=False, default_factory=dict)  # outputs of each sample
    _setup: ComparisonSetup | None = field(init=False, default=None)
    _own: CandidateRunner | None = field(init=False, default=None)

    def race(
        self, candidates: Iterable[Runnable], batches: Iterable[Sequence[int]], leads: Sequence[float] = ()
    ) -> tuple[int, list[CandidateError]]:
        """Choose the candidate that is closest to the reference on a typical sample.

        Further batches of samples are drawn only while another candidate may still be better than the best so far.
        Candidates that are surely worse are not run again.

        Args:
            candidates: The models. The next one is drawn while earlier ones run.
            batches: Numbers of samples.
            leads: dB by which each candidate must be better than one without a lead; 0 for those not listed.

        Returns:
            Index of the best candidate, and the error of each; of none if there are no samples.

        Raises:
            ModelError: A model does not run.
        """
        made: list[_Candidate] = []
        found: list[CandidateError] = []
        best, alive = 0, list[int]()

        def kept() -> Iterator[_Candidate]:
            for model in candidates:
                made.append(_Candidate(model))
                yield made[-1]

        for batch in batches:
            if not made:
                found = list(self._errors(kept(), batch))
                alive = list(range(len(found)))
            else:
                for i, one in zip(alive, self._errors((made[i] for i in alive), batch), strict=True):
                    found[i] = found[i].joined(one)
            handicaps = [*leads, *(0.0 for _ in found[len(leads) :])]
            best = max(alive, key=lambda i: found[i].typical_db - handicaps[i])
            ahead, weights = (found[best].each_db, handicaps[best]), found[best].weights
            alive = [i for i in alive if i == best or not _settled(ahead, (found[i].each_db, handicaps[i]), weights)]
            if len(alive) == 1:
                break
            for i in set(range(len(made))).difference(alive):
                made[i].runner = None
        return best, found

    def measure(self, candidates: Iterable[Runnable], numbers: Sequence[int]) -> Iterator[CandidateError]:
        """Yield the error of each candidate on these samples, in order. The next one is drawn while earlier ones run.

        Raises ModelError if a model does not run.
        """
        return self._errors((_Candidate(model) for model in candidates), numbers, keep=False)

    def release(self) -> None:
        """Let go of the reference's session and outputs. Later calls run it again."""
        self._own = None
        self._known.clear()
        self._wanted.close()

    def _errors(
        self, candidates: Iterable[_Candidate], numbers: Sequence[int], *, keep: bool = True
    ) -> Iterator[CandidateError]:
        if not numbers:
            yield from (CandidateError(()) for _ in candidates)
            return
        feeds = [sample.feed for sample in in_order(self.samples.__getitem__, numbers, self.threads)]
        setup = self._setup = self._setup or comparison_setup(self.reference, feeds[0])
        self._run_reference(setup, numbers, feeds)
        fed: list[Feed] = [setup.feed(feed, self._outputs(number)) for number, feed in zip(numbers, feeds, strict=True)]
        workers = self.threads if self._fit_together else 1
        each = self.threads // workers

        def error(candidate: _Candidate) -> CandidateError:
            runner = candidate.runner or CandidateRunner(setup, candidate.model, threads=1)
            candidate.runner = runner if keep and self._fit_together else None
            sums: list[Sums] = []
            for number, got in zip(numbers, runner.run_all(fed, each), strict=True):
                wanted = self._outputs(number)
                sums.append(sums_of(wanted, got, setup.compared(wanted, got)))
            return CandidateError(tuple(sums))

        with closing(in_order(error, candidates, workers)) as found:
            yield from found

    def _run_reference(self, setup: ComparisonSetup, numbers: Sequence[int], feeds: Sequence[Feed]) -> None:
        """Run the reference on the samples that it has not been run on."""
        new = [(n, feed) for n, feed in zip(numbers, feeds, strict=True) if n not in self._known]
        if not new:
            return
        runner = self._own or CandidateRunner(ComparisonSetup(setup.reference), setup.reference, threads=1)
        self._own = runner if self._fit_together else None
        for (number, _), outputs in zip(new, runner.run_all([feed for _, feed in new], self.threads), strict=True):
            self._known[number] = tuple(outputs)
            for name, values in outputs.items():
                self._wanted.put((number, name), values)

    def _outputs(self, number: int) -> _Outputs:
        return {name: self._wanted.get((number, name)) for name in self._known[number]}

    @cached_property
    def _fit_together(self) -> bool:
        """Whether as many models as threads fit the budget at once."""
        return self.threads * _size(self.reference) <= memory.part_bytes()


def measure_candidates(
    reference: Runnable, candidates: Iterable[Runnable], samples: Sequence[Sample], *, threads: int
) -> Iterator[CandidateError]:
    """Measure how far each candidate is from the reference.

    Args:
        reference: The float model.
        candidates: The models; the next one is drawn while earlier ones run.
        samples: Samples to run.
        threads: CPU threads in total.

    Yields:
        The error of each candidate, in order.

    Raises:
        ModelError: A model does not run.
    """
    return Judge(reference, samples, threads).measure(candidates, range(len(samples)))


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


def candidate_of(model: Model) -> Runnable:
    """A model to be measured. Weights of a small one are computed once, now; those of a large one where it is run."""
    lean = LeanModel.of(model)
    small = lean.weight_bytes <= memory.part_bytes() // _SERIALIZED
    return bytes(lean.to_proto().SerializeToString()) if small else lean


def _size(model: Runnable) -> int:
    if isinstance(model, LeanModel):
        return model.weight_bytes
    return stored_bytes(model) if isinstance(model, Path) else len(model)
