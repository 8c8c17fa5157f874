"""A candidate against the float model: per output, over all samples, with the runtime's optimizations on and off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.contract import contract, difference
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.maths.metrics import SqnrSum
from onnxshot.targets.ort_runtime import Runner
from onnxshot.tensorwise import SAMPLES, TensorRow, compare_tensors

GAP_DB = 1.0
"""More than this between optimizations on and off is a mistake of the runtime, or arithmetic that saturates."""
_NOISE_FLOOR_DB = 60.0  # above it the two runs may differ by rounding alone
_SCORES_RANK = (1, 2, 3)  # an output of rank 4 is a picture: its last axis is not classes


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output over all samples.

    Attributes:
        sqnr_db, unoptimized_db: of float outputs, with the runtime's graph optimizations on and off.
        max_abs_error: largest absolute difference, optimizations on; infinite where only one of the two is finite.
        agreement: share 0..1 of positions whose highest value along the last axis is at the same place, where the
            output looks like class scores (rank up to 3, last axis over 1).
        equal: share 0..1 of equal values of an output that is not float.
        other_shape: samples on which the shapes differ; those are in no other number.
    """

    name: str
    sqnr_db: float | None = None
    unoptimized_db: float | None = None
    max_abs_error: float = 0.0
    agreement: float | None = None
    equal: float | None = None
    other_shape: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate held against the float model.

    Attributes:
        sqnr_db, unoptimized_db: over all samples and float outputs; None where there are none.
        agreement: of the first output that looks like class scores.
        contract: the first difference of inputs and outputs in words; empty where there is none.
        not_finite: outputs and samples where only the candidate is NaN or infinite, in words.
        tensors: rows of the tensors that were asked for, worst first.
    """

    outputs: tuple[OutputRow, ...]
    sqnr_db: float | None
    unoptimized_db: float | None
    samples: int
    agreement: float | None = None
    contract: str = ""
    not_finite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: tuple[TensorRow, ...] = ()

    @property
    def optimizer_changes_results(self) -> bool:
        """True where runs with optimizations on and off differ by more than GAP_DB; what is deployed has them on."""
        rows = (_gap(row.sqnr_db, row.unoptimized_db) for row in self.outputs)
        return _gap(self.sqnr_db, self.unoptimized_db) or any(rows)


def compare(
    reference: Path | bytes,
    candidate: Path | bytes,
    samples: Iterable[Sample],
    *,
    tensors: Sequence[str] = (),
    threads: int = 2,
) -> Comparison:
    """Run both models over the samples, one at a time, and add up the differences.

    Held at any time: three sessions and one sample's outputs; with `tensors`, the feeds of the first samples too.
    Outputs are matched by name; what one model lacks, or numpy cannot hold, is left out and noted.

    Raises:
        ModelError: a model does not load or run, or no output has the same name in both.
        CalibrationError: there are no samples.
    """
    sides = contract(reference), contract(candidate)
    judge = Runner(reference, threads=threads)
    fast = Runner(candidate, threads=threads)
    plain = Runner(candidate, threads=threads, optimize=False)
    names = [name for name in judge.outputs if name in fast.outputs]
    kinds = judge.skipped | fast.skipped
    if not names and not kinds:
        raise ModelError(f"the models have no output in common: {_list(judge.outputs)} against {_list(fast.outputs)}")
    sums = {name: _Sums(name) for name in names}
    total, total_plain, first = SqnrSum(), SqnrSum(), list[Sample]()
    count = 0
    for sample in samples:
        wanted, got, other = judge.run(sample.feed), fast.run(sample.feed), plain.run(sample.feed)
        for name in names:
            sums[name].add(wanted[name], got[name], other[name], sample.name, (total, total_plain))
        if tensors and count < SAMPLES:
            first.append(sample)
        count += 1
    if not count:
        raise CalibrationError("there are no samples to compare on")
    del judge, fast, plain
    rows = tuple(entry.row() for entry in sums.values())
    notes = [f"output {name!r} is a {kind}, which is not compared" for name, kind in kinds.items()]
    notes += [f"output {r.name!r}: other shapes on {r.other_shape} of {count} samples" for r in rows if r.other_shape]
    return Comparison(
        outputs=rows,
        sqnr_db=total.db if total.count else None,
        unoptimized_db=total_plain.db if total_plain.count else None,
        samples=count,
        agreement=next((r.agreement for r in rows if r.agreement is not None), None),
        contract=difference(*sides),
        not_finite=tuple(text for entry in sums.values() for text in entry.not_finite),
        notes=tuple(notes),
        tensors=compare_tensors(reference, candidate, first, tensors, threads=threads) if tensors else (),
    )


@dataclass(slots=True)
class _Sums:
    """What is added up for one output."""

    name: str
    fast: SqnrSum = field(default_factory=SqnrSum)
    plain: SqnrSum = field(default_factory=SqnrSum)
    max_error: float = 0.0
    agreed: int = 0
    ranked: int = 0
    equal: int = 0
    exact: int = 0
    other_shape: int = 0
    not_finite: list[str] = field(default_factory=list)

    def add(
        self,
        wanted: NDArray[Any],
        got: NDArray[Any],
        plain: NDArray[Any],
        sample: str,
        totals: tuple[SqnrSum, SqnrSum],
    ) -> None:
        if wanted.shape != got.shape or wanted.shape != plain.shape:
            self.other_shape += 1
            return
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.equal += int(np.count_nonzero(wanted == got))
            self.exact += wanted.size
            return
        for part, candidate in zip((self.fast, self.plain), (got, plain), strict=True):
            part.add(wanted, candidate)
        for part, candidate in zip(totals, (got, plain), strict=True):
            part.add(wanted, candidate)
        self._look_for_nan(wanted, {"": got, " with optimizations off": plain}, sample)
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

    def _look_for_nan(self, wanted: NDArray[Any], runs: Mapping[str, NDArray[Any]], sample: str) -> None:
        if self.not_finite:  # the first sample is told, not every one
            return
        for how, got in runs.items():
            bad = ~np.isfinite(got) & np.isfinite(wanted)
            if bad.any():
                what = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
                self.not_finite.append(f"output {self.name!r} on sample {sample!r}{how}: {what}")
                return

    def row(self) -> OutputRow:
        is_float = self.fast.count > 0
        return OutputRow(
            name=self.name,
            sqnr_db=self.fast.db if is_float else None,
            unoptimized_db=self.plain.db if is_float else None,
            max_abs_error=self.max_error,
            agreement=self.agreed / self.ranked if self.ranked else None,
            equal=self.equal / self.exact if self.exact else None,
            other_shape=self.other_shape,
        )


def _gap(fast: float | None, plain: float | None) -> bool:
    if fast is None or plain is None:
        return False
    return abs(fast - plain) > GAP_DB and min(fast, plain) < _NOISE_FLOOR_DB


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
