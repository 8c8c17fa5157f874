"""Accumulate the error of each output, sample by sample. The SQNR itself is computed in `maths/sqnr.py`."""

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
from onnxshot.comparison.output_matches import CLASSES, PICKS, Match
from onnxshot.comparison.output_parts import Part, Parts
from onnxshot.comparison.sample_spread import spread
from onnxshot.maths.sqnr import SqnrSum

Outputs = Mapping[str, NDArray[Any]]

_BLOCK = 1 << 18  # values


@dataclass(frozen=True, slots=True)
class OutputRow:
    """The error of one output over all samples.

    Attributes:
        name: Name of the output.
        sqnr_db: SQNR in dB of a float output, with the runtime's graph optimizations on, as deployed.
        unoptimized_db: SQNR in dB over the first samples only, with optimizations off.
        optimized_db: SQNR in dB over the same samples, with optimizations on.
        max_abs_error: Largest absolute difference, with optimizations on. Infinite if only one of two values is finite.
        agreement: Top-1 agreement, 0..1, along the last axis, of an output that looks like class scores (see
            `onnxshot.comparison.class_scores`). Share of identical picks of an output that TopK or a similar node
            orders.
        cases: Number of cases that the agreement is a share of; 0 if unknown.
        match: What is counted in an output of a known kind (see `onnxshot.comparison.output_matches`).
        equal: Share of equal values, 0..1, of an output that is not float.
        other_shape: Number of samples on which the shapes differ. Their noise counts as large as the signal.
        blank: Number of samples on which the float model gives no finite number. They are not judged.
        part: Channels that are far quieter than the others (see `onnxshot.comparison.output_parts`).
        samples_db: Spread of the SQNR over the samples (see `onnxshot.comparison.sample_spread`).
        kl_nats: Mean Kullback-Leibler divergence in nats of class scores that are a softmax, or are named logits.
    """

    name: str
    sqnr_db: float | None = None
    unoptimized_db: float | None = None
    optimized_db: float | None = None
    max_abs_error: float = 0.0
    agreement: float | None = None
    cases: int = 0
    match: Match | None = None
    equal: float | None = None
    other_shape: int = 0
    blank: int = 0
    part: Part | None = None
    samples_db: Mapping[str, float] = field(default_factory=dict)
    kl_nats: float | None = None


class Sum(SqnrSum):
    """An SQNR that is None until something is added."""

    @property
    def value(self) -> float | None:
        """SQNR in dB; None if nothing was added."""
        return self.db if self.count else None


@dataclass(slots=True)
class Totals:
    """SQNR over all samples; over the first samples with optimizations on, and with them off."""

    all: Sum = field(default_factory=Sum)
    first: Sum = field(default_factory=Sum)
    plain: Sum = field(default_factory=Sum)


@dataclass(slots=True)
class Sums:
    """Accumulated errors of one output.

    `scores` is None if the output cannot be class scores, `parts` if it has no channels.
    """

    name: str
    scores: Scores | None = field(default_factory=Scores)
    parts: Parts | None = field(default_factory=Parts)
    own: Totals = field(default_factory=Totals)
    each: list[SqnrSum] = field(default_factory=list)
    max_error: float = 0.0
    equal: int = 0
    exact: int = 0
    other_shape: int = 0
    blank: int = 0
    not_finite: list[str] = field(default_factory=list)

    def add(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: Totals, *, first: bool) -> None:
        """Add the values of one sample, with the runtime's optimizations on.

        Args:
            wanted: Values of the float model.
            got: Values of the candidate.
            sample: Name of the sample, for messages.
            totals: Totals over all outputs, which are added to as well.
            first: True for the first samples, which also run with optimizations off.
        """
        if wanted.shape != got.shape:
            self._add_lost(wanted, got, totals, first=first)
            return
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.equal += int(np.count_nonzero(wanted == got))
            self.exact += wanted.size
            return
        self._look_for_nan(wanted, got, sample, "")
        if wanted.size and not np.isfinite(wanted).any():  # the float model says nothing
            self.blank += 1
            return
        self._add_float(wanted, got, totals, first=first)
        self.max_error = max(self.max_error, _largest_error(wanted.reshape(-1), got.reshape(-1)))
        if self.parts is not None:
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
        """Count an output of another shape as entirely wrong."""
        self.other_shape += 1
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            self.exact += max(wanted.size, got.size)
            return
        self._add_float(wanted, got, totals, first=first)
        if self.scores is not None:
            self.scores.add(wanted, None)

    def add_plain(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, totals: Totals) -> None:
        """Add the values of one sample, with the runtime's optimizations off."""
        if wanted.dtype.kind != "f" or got.dtype.kind != "f":
            return
        add_output(self.own.plain, wanted, got)
        add_output(totals.plain, wanted, got)
        if wanted.shape != got.shape:
            return
        self._look_for_nan(wanted, got, sample, " with optimizations off")

    def _look_for_nan(self, wanted: NDArray[Any], got: NDArray[Any], sample: str, suffix: str) -> None:
        if self.not_finite:  # the first sample is enough
            return
        bad = ~np.isfinite(got) & np.isfinite(wanted)
        if bad.any():
            what = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
            self.not_finite.append(f"output {self.name!r} on sample {sample!r}{suffix}: {what}")

    def row(self) -> OutputRow:
        """The accumulated errors as a row."""
        scores = self.scores
        agreement, match = scores.agreement if scores is not None else None, None
        if scores is not None and agreement is not None:
            match = Match(CLASSES, scores.agreed, scores.decided)
        return OutputRow(
            name=self.name,
            sqnr_db=self.own.all.value,
            unoptimized_db=self.own.plain.value,
            optimized_db=self.own.first.value,
            max_abs_error=self.max_error,
            agreement=agreement,
            cases=scores.decided if scores is not None else 0,
            match=match,
            equal=self.equal / self.exact if self.exact else None,
            other_shape=self.other_shape,
            blank=self.blank,
            part=self.parts.found if self.parts is not None else None,
            samples_db=spread(self.each),
            kl_nats=scores.divergence if scores is not None else None,
        )


def _largest_error(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """The largest absolute difference of two vectors, in blocks; infinite if only one of two values is finite."""
    largest = 0.0
    for start in range(0, wanted.size, _BLOCK):
        one, other = wanted[start : start + _BLOCK].astype(np.float64), got[start : start + _BLOCK]
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(one - other)
        error[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
        worst = float(error.max())  # max propagates NaN
        largest = max(largest, np.inf if np.isnan(worst) else worst)
    return largest


class Picks:
    """Counts what ordering nodes, such as TopK, picked in both models."""

    def __init__(self, setup: ComparisonSetup) -> None:
        self.setup = setup
        self._counts = {order.number: (0, 0) for order in setup.orders}

    def add(self, wanted: Outputs, got: Outputs) -> None:
        """Add the picks of both models on one sample."""
        for order, same, of in self.setup.shared_picks(wanted, got):
            before = self._counts[order.number]
            self._counts[order.number] = (before[0] + same, before[1] + of)

    def counts(self) -> list[tuple[Order, int, int]]:
        """For each ordering node: the node, the number of picks that both models share, and the number of picks."""
        return [(order, *self._counts[order.number]) for order in self.setup.orders]

    def matches(self) -> dict[str, Match]:
        """Identical picks, by output; of the node with the lowest share if several nodes order it.

        If NonMaxSuppression is among them, the last one counts: its picks are the detections, and what is picked before
        are proposals.
        """
        counts = self.counts()
        last = {name: order.number for order, _, _ in counts if order.op == "NonMaxSuppression"
                for name in self.setup.ordered_outputs[order.number]}  # fmt: skip
        found: dict[str, Match] = {}
        for order, same, of in counts:
            for name in sorted(self.setup.ordered_outputs[order.number]) if of else ():
                one = Match(PICKS, same, of)
                if last.get(name, order.number) == order.number:
                    found[name] = min(found.get(name, one), one, key=lambda match: match.share)
        return found
