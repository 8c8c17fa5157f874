"""What is added up for each output of two models, sample by sample, and the row that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.comparison.balanced_sqnr import add_output
from onnxshot.comparison.class_scores import Scores
from onnxshot.comparison.comparison_setup import ComparisonSetup
from onnxshot.comparison.ordering_nodes import Order
from onnxshot.comparison.output_parts import Part, Parts
from onnxshot.comparison.sample_spread import spread
from onnxshot.maths.sqnr import SqnrSum

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output over all samples.

    Attributes:
        sqnr_db: of float outputs, with the runtime's graph optimizations on, as deployed.
        unoptimized_db, optimized_db: with optimizations off and on, over the first samples alone: to see whether the
            optimizations change results, a few samples do.
        max_abs_error: largest absolute difference, optimizations on; infinite where only one of the two is finite.
        agreement: share 0..1 of positions whose highest value along the last axis is at the same place, where the
            output looks like class scores: see `onnxshot.comparison.class_scores`; where TopK or the like has ordered
            the output, the share of its picks that both models have.
        equal: share 0..1 of equal values of an output that is not float.
        other_shape: samples on which the shapes differ; those count as lost: noise as large as the signal.
        part: channels that are far quieter than the others: see `onnxshot.comparison.output_parts`.
        samples_db: how SQNR is spread over the samples: see `onnxshot.comparison.sample_spread`.
    """

    name: str
    sqnr_db: float | None = None
    unoptimized_db: float | None = None
    optimized_db: float | None = None
    max_abs_error: float = 0.0
    agreement: float | None = None
    equal: float | None = None
    other_shape: int = 0
    part: Part | None = None
    samples_db: Mapping[str, float] = field(default_factory=dict)


class Sum(SqnrSum):
    """An SQNR that is None where nothing was added."""

    @property
    def value(self) -> float | None:
        """Decibels; None where nothing was added."""
        return self.db if self.count else None


@dataclass(slots=True)
class Totals:
    """Over all samples; over the first ones with optimizations on, and off."""

    all: Sum = field(default_factory=Sum)
    first: Sum = field(default_factory=Sum)
    plain: Sum = field(default_factory=Sum)


@dataclass(slots=True)
class Sums:
    """What is added up for one output. scores: None where it is not to be looked at as class scores."""

    name: str
    scores: Scores | None = field(default_factory=Scores)
    parts: Parts = field(default_factory=Parts)
    own: Totals = field(default_factory=Totals)
    each: list[SqnrSum] = field(default_factory=list)
    max_error: float = 0.0
    equal: int = 0
    exact: int = 0
    other_shape: int = 0
    not_finite: list[str] = field(default_factory=list)

    def add(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: Totals, *, first: bool) -> None:
        """Add what came out on a sample, with the runtime's optimizations on. first: it is one of the first samples."""
        if wanted.shape != got.shape:
            self._add_lost(wanted, got, totals, first=first)
            return
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.equal += int(np.count_nonzero(wanted == got))
            self.exact += wanted.size
            return
        self._add_float(wanted, got, totals, first=first)
        self._look_for_nan(wanted, got, sample, "")
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(wanted.astype(np.float64) - got)
        error = np.where((wanted == got) | (np.isnan(wanted) & np.isnan(got)), 0.0, error)
        if error.size:
            worst = float(error.max())  # NaN goes through max
            self.max_error = max(self.max_error, np.inf if np.isnan(worst) else worst)
        self.parts.add(wanted, got)
        if self.scores is not None:
            self.scores.add(wanted, got)

    def _add_float(self, wanted: NDArray[Any], got: NDArray[Any], totals: Totals, *, first: bool) -> None:
        own = SqnrSum()
        add_output(own, wanted, got)
        self.each.append(own)
        for part in (self.own, totals):
            part.all.join(own)
            if first:
                part.first.join(own)

    def _add_lost(self, wanted: NDArray[Any], got: NDArray[Any], totals: Totals, *, first: bool) -> None:
        """Count an output of another shape as wholly wrong."""
        self.other_shape += 1
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.exact += max(wanted.size, got.size)
            return
        self._add_float(wanted, got, totals, first=first)
        if self.scores is not None:
            self.scores.add(wanted, None)

    def add_plain(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: Totals) -> None:
        """Add what came out with the runtime's optimizations off."""
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            return
        add_output(self.own.plain, wanted, got)
        add_output(totals.plain, wanted, got)
        if wanted.shape != got.shape:
            return
        self._look_for_nan(wanted, got, sample, " with optimizations off")

    def _look_for_nan(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, how: str) -> None:
        if self.not_finite:  # the first sample is told, not every one
            return
        bad = ~np.isfinite(got) & np.isfinite(wanted)
        if bad.any():
            what = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
            self.not_finite.append(f"output {self.name!r} on sample {sample!r}{how}: {what}")

    def row(self) -> OutputRow:
        """The sums as a row."""
        return OutputRow(
            name=self.name,
            sqnr_db=self.own.all.value,
            unoptimized_db=self.own.plain.value,
            optimized_db=self.own.first.value,
            max_abs_error=self.max_error,
            agreement=self.scores.agreement if self.scores is not None else None,
            equal=self.equal / self.exact if self.exact else None,
            other_shape=self.other_shape,
            part=self.parts.found,
            samples_db=spread(self.each),
        )


class Picks:
    """What the nodes that order picked in both models."""

    def __init__(self, how: ComparisonSetup) -> None:
        self.how = how
        self._counts = {order.number: (0, 0) for order in how.orders}

    def add(self, wanted: Outputs, got: Outputs) -> None:
        """Add what both picked on a sample."""
        for order, same, of in self.how.shared_picks(wanted, got):
            before = self._counts[order.number]
            self._counts[order.number] = (before[0] + same, before[1] + of)

    def counts(self) -> list[tuple[Order, int, int]]:
        """(order, picks that both have, picks)."""
        return [(order, *self._counts[order.number]) for order in self.how.orders]

    def shares(self) -> dict[str, float]:
        """Share 0..1 of the same picks, by output: the least of those that order it."""
        found: dict[str, float] = {}
        for order, same, of in self.counts():
            for name in sorted(self.how.ordered_outputs[order.number]) if of else ():
                found[name] = min(found.get(name, 1.0), same / of)
        return found
