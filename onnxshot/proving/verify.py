"""A candidate against the float model: per output, over all samples, with the runtime's optimizations on and off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import at_once, in_order, shared_out
from onnxshot.proving.contract import contract, difference
from onnxshot.proving.tensorwise import SAMPLES, TensorRow, compare_tensors, too_large
from onnxshot.report import GAP_DB
from onnxshot.targets.ort_runtime import Runner
from onnxshot.targets.runtime import Loaded

_Outputs = Mapping[str, NDArray[Any]]

_NO_SAMPLES = "there are no samples to compare on"
_NOISE_FLOOR_DB = 60.0  # above it the two runs may differ by rounding alone
_SCORES_RANK = (1, 2, 3)  # an output of rank 4 is a picture: its last axis is not classes


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output over all samples.

    Attributes:
        sqnr_db: of float outputs, with the runtime's graph optimizations on, as deployed.
        unoptimized_db, optimized_db: with optimizations off and on, over the first samples alone: to see whether the
            optimizations change results, a few samples do.
        max_abs_error: largest absolute difference, optimizations on; infinite where only one of the two is finite.
        agreement: share 0..1 of positions whose highest value along the last axis is at the same place, where the
            output looks like class scores (rank up to 3, last axis over 1).
        equal: share 0..1 of equal values of an output that is not float.
        other_shape: samples on which the shapes differ; those are in no other number.
    """

    name: str
    sqnr_db: float | None = None
    unoptimized_db: float | None = None
    optimized_db: float | None = None
    max_abs_error: float = 0.0
    agreement: float | None = None
    equal: float | None = None
    other_shape: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate held against the float model.

    Attributes:
        sqnr_db: over all samples and float outputs; None where there are none.
        unoptimized_db, optimized_db: over the first samples, with the runtime's optimizations off and on.
        agreement: of the first output that looks like class scores.
        contract: the first difference of inputs and outputs in words; empty where there is none.
        not_finite: outputs and samples where only the candidate is NaN or infinite, in words.
        tensors: rows of the tensors that were asked for, worst first.
    """

    outputs: tuple[OutputRow, ...]
    sqnr_db: float | None
    unoptimized_db: float | None
    optimized_db: float | None
    samples: int
    agreement: float | None = None
    contract: str = ""
    not_finite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: tuple[TensorRow, ...] = ()

    @property
    def optimizer_changes_results(self) -> bool:
        """True where a run with optimizations on, as deployed, is worse than one without by more than GAP_DB."""
        rows = (_gap(row.optimized_db, row.unoptimized_db) for row in self.outputs)
        return _gap(self.optimized_db, self.unoptimized_db) or any(rows)


def compare(
    reference: Path | bytes,
    candidate: Path | bytes,
    samples: Iterable[Sample],
    *,
    tensors: Sequence[str] | None = (),
    threads: int = 2,
    inside: bytes | None = None,
) -> Comparison:
    """Run both models over the samples and add up the differences; as many samples at once as there are threads.

    The first samples are run once more with the runtime's optimizations off, and tell of the named tensors too, or of
    all where `tensors` is None. Held at any time: two sessions, a few samples' outputs, and the first samples' feeds.
    inside: the float model whose tensors the candidate's are held against, where that is not the reference.
    Outputs are matched by name; what one model lacks, or numpy cannot hold, is left out and noted.

    Raises:
        ModelError: a model does not load or run, or no output has the same name in both.
        CalibrationError: there are no samples.
    """
    sides = contract(reference), contract(candidate)
    workers, each = shared_out(threads, len(samples) if isinstance(samples, Sized) else None)
    judge, fast = at_once(lambda: Runner(reference, threads=each), lambda: Runner(candidate, threads=each))
    names = [name for name in judge.outputs if name in fast.outputs]
    kinds = judge.skipped | fast.skipped
    if not names and not kinds:
        raise ModelError(f"the models have no output in common: {_list(judge.outputs)} against {_list(fast.outputs)}")
    sums = {name: _Sums(name) for name in names}
    totals, first = _Totals(), list[tuple[Sample, _Outputs]]()
    count = 0
    for sample, wanted, got in _run(judge, fast, samples, workers):
        for name in names:
            sums[name].add(wanted[name], got[name], sample.name, totals, first=count < SAMPLES)
        if count < SAMPLES:
            first.append((sample, wanted))
        count += 1
    if not count:
        raise CalibrationError(_NO_SAMPLES)

    wanted_of = {id(sample): wanted for sample, wanted in first}

    def plain(sample: Sample, _: _Outputs, got: _Outputs) -> None:
        for name in names:
            sums[name].add_plain(wanted_of[id(sample)][name], got[name], sample.name, totals)

    rows_inside: tuple[TensorRow, ...] = ()
    seen = [sample for sample, _ in first]
    if too_large(reference, candidate):  # seen from outside only
        del fast
        for run in _run(judge, Runner(candidate, threads=each, optimize=False), seen, workers):
            plain(*run)
    else:
        del judge, fast
        rows_inside = compare_tensors(
            inside or reference, candidate, seen, tensors, threads=threads, outputs=names, each=plain
        )
    found = _comparison(sums, totals, count)
    notes = [f"output {name!r} is a {kind}, which is not compared" for name, kind in kinds.items()]
    return replace(found, contract=difference(*sides), notes=(*notes, *found.notes), tensors=rows_inside)


def _comparison(sums: Mapping[str, _Sums], totals: _Totals, count: int) -> Comparison:
    rows = tuple(entry.row() for entry in sums.values())
    return Comparison(
        outputs=rows,
        sqnr_db=totals.all.value,
        unoptimized_db=totals.plain.value,
        optimized_db=totals.first.value,
        samples=count,
        agreement=next((r.agreement for r in rows if r.agreement is not None), None),
        not_finite=tuple(text for entry in sums.values() for text in entry.not_finite),
        notes=tuple(
            f"output {r.name!r}: other shapes on {r.other_shape} of {count} samples" for r in rows if r.other_shape
        ),
    )


def compare_loaded(reference: Path | bytes, candidate: Loaded, samples: Dataset, *, threads: int = 2) -> Comparison:
    """Hold a model that is loaded in whatever runtime against an .onnx file, run in ONNX Runtime; outputs alone.

    Raises ModelError where one does not run, or no output has the same name in both; CalibrationError without samples.
    """
    judge = Runner(reference, threads=threads)
    names = [name for name in judge.outputs if name in candidate.outputs]
    if not names:
        raise ModelError(f"no output in common: {_list(judge.outputs)} against {_list(candidate.outputs)}")
    if not len(samples):
        raise CalibrationError(_NO_SAMPLES)
    sums, totals = {name: _Sums(name) for name in names}, _Totals()
    for sample, wanted, got in _run(judge, candidate, samples, 1):
        for name in names:
            sums[name].add(wanted[name], got[name], sample.name, totals, first=False)
    return _comparison(sums, totals, len(samples))


def _run(
    judge: Runner, other: Loaded, samples: Iterable[Sample], workers: int
) -> Iterator[tuple[Sample, _Outputs, _Outputs]]:
    """The outputs of both on every sample; those of a Dataset are read in the threads that run them."""
    get: Callable[[Any], Sample] = samples.__getitem__ if isinstance(samples, Dataset) else lambda sample: sample
    items: Iterable[Any] = range(len(samples)) if isinstance(samples, Dataset) else samples

    def look(item: Any) -> tuple[Sample, _Outputs, _Outputs]:
        sample = get(item)
        return sample, judge.run(sample.feed), other.run(sample.feed)

    return in_order(look, items, workers)


class _Sum(SqnrSum):
    """An SQNR that is None where nothing was added."""

    @property
    def value(self) -> float | None:
        return self.db if self.count else None


@dataclass(slots=True)
class _Totals:
    """Over all samples; over the first ones with optimizations on, and off."""

    all: _Sum = field(default_factory=_Sum)
    first: _Sum = field(default_factory=_Sum)
    plain: _Sum = field(default_factory=_Sum)


@dataclass(slots=True)
class _Sums:
    """What is added up for one output."""

    name: str
    own: _Totals = field(default_factory=_Totals)
    max_error: float = 0.0
    agreed: int = 0
    ranked: int = 0
    equal: int = 0
    exact: int = 0
    other_shape: int = 0
    not_finite: list[str] = field(default_factory=list)

    def add(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: _Totals, *, first: bool) -> None:
        if wanted.shape != got.shape:
            self.other_shape += 1
            return
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.equal += int(np.count_nonzero(wanted == got))
            self.exact += wanted.size
            return
        for part in (self.own, totals):
            part.all.add(wanted, got)
            if first:
                part.first.add(wanted, got)
        self._look_for_nan(wanted, got, sample, "")
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(wanted.astype(np.float64) - got)
        error = np.where((wanted == got) | (np.isnan(wanted) & np.isnan(got)), 0.0, error)
        if error.size:
            worst = float(error.max())  # NaN goes through max
            self.max_error = max(self.max_error, np.inf if np.isnan(worst) else worst)
        if wanted.ndim in _SCORES_RANK and wanted.shape[-1] > 1:
            same = wanted.argmax(-1) == got.argmax(-1)
            self.agreed += int(np.count_nonzero(same))
            self.ranked += same.size

    def add_plain(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: _Totals) -> None:
        """Add what came out with the runtime's optimizations off."""
        if wanted.shape != got.shape or wanted.dtype.kind != "f" or got.dtype.kind != "f":
            return
        self.own.plain.add(wanted, got)
        totals.plain.add(wanted, got)
        self._look_for_nan(wanted, got, sample, " with optimizations off")

    def _look_for_nan(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, how: str) -> None:
        if self.not_finite:  # the first sample is told, not every one
            return
        bad = ~np.isfinite(got) & np.isfinite(wanted)
        if bad.any():
            what = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
            self.not_finite.append(f"output {self.name!r} on sample {sample!r}{how}: {what}")

    def row(self) -> OutputRow:
        return OutputRow(
            name=self.name,
            sqnr_db=self.own.all.value,
            unoptimized_db=self.own.plain.value,
            optimized_db=self.own.first.value,
            max_abs_error=self.max_error,
            agreement=self.agreed / self.ranked if self.ranked else None,
            equal=self.equal / self.exact if self.exact else None,
            other_shape=self.other_shape,
        )


def _gap(fast: float | None, plain: float | None) -> bool:
    if fast is None or plain is None:
        return False
    return plain - fast > GAP_DB and fast < _NOISE_FLOOR_DB


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
