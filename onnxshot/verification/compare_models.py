"""A candidate against the float model: per output, over all samples, with the runtime's optimizations on and off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.comparison.class_scores import Scores, makers_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.execution.parallel import in_order, split_threads
from onnxshot.graph.fixed_shapes import AS_THEY_ARE, Frozen
from onnxshot.report.values import GAP_DB
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.compare_tensors import SAMPLES, Scaled, TensorRow, closest, compare_tensors, too_large
from onnxshot.verification.io_contract import contract, difference, with_frozen
from onnxshot.verification.output_errors import OutputRow, Outputs, Picks, Sums, Totals

_NO_SAMPLES = "there are no samples to compare on"
_CLEAR_DB = 40.0  # a tensor above it stands for the same value in both
_NOISE_FLOOR_DB = 60.0  # above it the two runs may differ by rounding alone


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate held against the float model.

    Attributes:
        sqnr_db: over all samples and float outputs; None where there are none.
        unoptimized_db, optimized_db: over the first samples, with the runtime's optimizations off and on.
        agreement: of the first output that looks like class scores.
        contract: the first difference of inputs and outputs in words; empty where there is none.
        not_finite: outputs and samples where only the candidate is NaN or infinite, in words.
        tensors: rows of the tensors that were asked for, worst first; tensor_samples: of how many samples, the
            first ones.
        random: nodes that draw random numbers, which were made to draw the same in both models.
        ordered: share 0..1 of the same picks, by output that TopK or the like has ordered: see `onnxshot.comparison`.
        copied: outputs of which only a part is computed, and judged.
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
    tensor_samples: int = 0
    random: tuple[str, ...] = ()
    ordered: Mapping[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()

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
    scaled: Mapping[str, Scaled] | None = None,
    form: bytes = b"",
    sizes: Frozen = AS_THEY_ARE,
) -> Comparison:
    """Run both models over the samples and add up the differences; as many samples at once as there are threads.

    The first samples are run once more with the runtime's optimizations off, and tell of the named tensors too, or of
    all where `tensors` is None. Held at any time: two sessions, a few samples' outputs, and the first samples' feeds.
    inside: the float model whose tensors the candidate's are held against, where that is not the reference; scaled:
    tensors whose channels are larger in the candidate by these factors. form: the reference after passes that fuse
    operators, after which a name may stand for another value: of both, what the candidate comes closer to counts.
    sizes: dimensions that the candidate was to be frozen at, which are no difference of its inputs and outputs.

    Outputs are matched by name; what one model lacks, or numpy cannot hold, is left out and noted. Random numbers
    inside, the order of TopK and the like, and copies of inputs are kept out of all figures: see `onnxshot.comparison`.

    Raises:
        ModelError: a model does not load or run, or no output has the same name in both.
        CalibrationError: there are no samples.
    """
    sides = with_frozen(contract(reference), sizes), contract(candidate)
    workers, each = split_threads(threads, len(samples) if isinstance(samples, Sized) else None)
    start, samples = _begun(samples)
    how, judge, fast = _loaded(reference, candidate, start, each)
    names = how.compared(judge.outputs, fast.outputs)
    kinds = judge.skipped | fast.skipped
    if not names and not kinds:
        raise ModelError(f"the models have no output in common: {_list(judge.outputs)} against {_list(fast.outputs)}")
    sums, picks = _sums(how, names), Picks(how)
    totals, first = Totals(), list[tuple[Sample, Outputs]]()
    count, picked = 0, True
    for sample, wanted, got in _run(judge, fast, samples, workers, how):
        for name in names:
            if name in got:  # not what a model orders by, where it picked for itself
                sums[name].add(wanted[name], got[name], sample.name, totals, first=count < SAMPLES)
        picks.add(wanted, got)
        if count < SAMPLES:
            first.append((how.sample(sample, wanted), wanted))
            picked = picked and how.has_picks(got)
        count += 1

    wanted_of = {id(sample): wanted for sample, wanted in first}

    def plain(sample: Sample, _: Outputs, got: Outputs) -> None:
        for name in (name for name in names if name in got):
            sums[name].add_plain(wanted_of[id(sample)][name], got[name], sample.name, totals)

    rows_inside: tuple[TensorRow, ...] = ()
    seen = [sample for sample, _ in first]
    if too_large(reference, candidate):  # seen from outside only
        del fast
        slow = CandidateRunner(how, candidate, threads=each, optimize=False)
        for run in _run(judge, slow, seen, workers, how):
            plain(*run)
    else:
        del judge, fast
        alike = how if picked else how.unordered
        rows_inside = compare_tensors(
            alike.prepared(inside or reference), alike.prepared(candidate), seen, tensors, threads=threads,
            outputs=[n for n in names if picked or not how.is_sort_key(n)], each=plain, scaled=scaled,
        )  # fmt: skip
        again = [row.tensor for row in rows_inside if row.sqnr_db < _CLEAR_DB] if form and how.plain else []
        if again:
            others = compare_tensors(form, how.prepared(candidate), seen, again, threads=threads, scaled=scaled)
            rows_inside = closest(rows_inside, others)
    found = _comparison(sums, totals, count, picks)
    notes = [f"output {name!r} is a {kind}, which is not compared" for name, kind in kinds.items()]
    return replace(
        found, contract=difference(*sides), notes=(*notes, *how.notes, *found.notes), tensors=rows_inside,
        tensor_samples=len(seen) if rows_inside else 0,
        random=tuple(source.node for source in how.random_nodes), copied=tuple(one.output for one in how.copied),
    )  # fmt: skip


def _begun(samples: Iterable[Sample]) -> tuple[Sample, Iterable[Sample]]:
    """The first of the samples, and all of them. Raises CalibrationError where there is none."""
    if isinstance(samples, Sized) and not isinstance(samples, Iterator):
        first = next(iter(samples), None)
    else:
        rest = iter(samples)
        first = next(rest, None)
        samples = rest if first is None else itertools.chain([first], rest)
    if first is None:
        raise CalibrationError(_NO_SAMPLES)
    return first, samples


def _loaded(
    reference: Path | bytes, candidate: Path | bytes, sample: Sample, threads: int
) -> tuple[ComparisonSetup, Runner, CandidateRunner]:
    """How the candidate is held against the reference, and both as they are run for it."""
    how, other = comparison_setup(reference, sample.feed).load_candidate(candidate, reference, threads)
    return how, Runner(how.reference, threads=threads, whole=True), other


def _sums(how: ComparisonSetup, names: Iterable[str]) -> dict[str, Sums]:
    """What is added up, by name of the output in the models that are run."""
    ordered = {output for outputs in how.ordered_outputs.values() for output in outputs}
    left_out = ordered | {one.output for one in how.copied}
    makers = makers_of(how.reference)
    scores = {n: None if how.is_sort_key(n) or n in left_out else Scores(makers.get(n, "")) for n in names}
    return {name: Sums(how.output_name(name), scores=one) for name, one in scores.items()}


def _comparison(sums: Mapping[str, Sums], totals: Totals, count: int, picks: Picks | None = None) -> Comparison:
    ordered = picks.shares() if picks is not None else {}
    rows = tuple(_as_ordered(entry.row(), ordered) for entry in sums.values())
    return Comparison(
        outputs=rows,
        sqnr_db=totals.all.value,
        unoptimized_db=totals.plain.value,
        optimized_db=totals.first.value,
        samples=count,
        agreement=next((r.agreement for r in rows if r.agreement is not None), None),
        not_finite=tuple(text for entry in sums.values() for text in entry.not_finite),
        notes=(
            *(_picked(picks) if picks is not None else ()),
            *(_in_parts(r) for r in rows if r.part is not None),
            *(f"output {r.name!r}: other shapes on {r.other_shape} of {count} samples" for r in rows if r.other_shape),
        ),
        ordered=ordered,
    )


def _in_parts(row: OutputRow) -> str:
    part = row.part
    assert part is not None
    where = f"{part.quiet} of {part.channels} channels along axis {part.axis} are over 30 times quieter"
    return f"output {row.name!r}: {where}: SQNR {part.quiet_db:.1f} dB there, {part.loud_db:.1f} dB in the others"


def _as_ordered(row: OutputRow, ordered: Mapping[str, float]) -> OutputRow:
    """The row of an output that TopK or the like has ordered: place by place it says what the same picks give."""
    share = ordered.get(row.name)
    if share is None:
        return row
    return replace(row, agreement=share, equal=None if row.equal is None else min(row.equal, share))


def _picked(picks: Picks) -> list[str]:
    """What the nodes that order picked, in words."""
    ordered = picks.how.ordered_outputs
    return [
        f"{order.op} {order.node!r} orders {_list(sorted(ordered[order.number]))}: compared in the float model's "
        f"order; {same / of:.1%} of what is picked is the same"
        for order, same, of in picks.counts()
        if of
    ]


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
    how = comparison_setup(reference, samples[0].feed)
    told, names = names, _comparable(how, names)
    makers = makers_of(reference)
    sums, totals = {name: Sums(name, scores=Scores(makers.get(name, ""))) for name in names}, Totals()
    alike = ComparisonSetup(reference)
    for sample, wanted, got in _run(judge, candidate, samples if names else [samples[0]], 1, alike):
        for name in names:
            sums[name].add(wanted[name], got[name], sample.name, totals, first=False)
    found = _comparison(sums, totals, len(samples))
    left_out = [name for name in told if name not in names]
    if not left_out:
        return found
    note = f"not compared in this runtime: {_list(left_out)}, which {_why(how)}"
    return replace(found, notes=(*found.notes, note))


def _comparable(how: ComparisonSetup, names: Iterable[str]) -> list[str]:
    """The outputs that say something of a model that cannot be changed for a comparison."""
    if how.random_nodes:
        return []
    hidden = {name for outputs in how.ordered_outputs.values() for name in outputs} | {one.output for one in how.copied}
    return [name for name in names if name not in hidden]


def _why(how: ComparisonSetup) -> str:
    """What keeps outputs out of such a comparison, in words."""
    if how.random_nodes:
        return f"random numbers change from run to run ({how.random_nodes[0].node!r})"
    parts = [f"{order.op} orders" for order in how.orders[:1]] + ["copy inputs" for _ in how.copied[:1]]
    return " or ".join(parts)


def _run(
    judge: Runner, other: Loaded | CandidateRunner, samples: Iterable[Sample], workers: int, how: ComparisonSetup
) -> Iterator[tuple[Sample, Outputs, Outputs]]:
    """The outputs of both on every sample; those of a Dataset are read in the threads that run them."""
    get: Callable[[Any], Sample] = samples.__getitem__ if isinstance(samples, Dataset) else lambda sample: sample
    items: Iterable[Any] = range(len(samples)) if isinstance(samples, Dataset) else samples

    def look(item: Any) -> tuple[Sample, Outputs, Outputs]:
        sample = get(item)
        wanted = judge.run(sample.feed)
        return sample, wanted, other.run(how.feed(sample.feed, wanted))

    return in_order(look, items, workers)


def _gap(fast: float | None, plain: float | None) -> bool:
    if fast is None or plain is None:
        return False
    return plain - fast > GAP_DB and fast < _NOISE_FLOOR_DB


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
