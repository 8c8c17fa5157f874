"""Compare a candidate with the float model: each output over all samples, with runtime optimizations on and off."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto

from onnxshot import memory
from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.calibration.sources import add_feed
from onnxshot.comparison.class_scores import Scores, know_each_other, makers_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.comparison.output_matches import CLASSES, DECISIONS, LABELS, Match, Matches
from onnxshot.comparison.proto_edits import parsed
from onnxshot.comparison.token_outputs import token_ids, token_output
from onnxshot.comparison.token_scores import TokenScores
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.graph.fixed_shapes import NO_FIXED_SHAPES, FixedShapes
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_runtime import Runnable, Runner
from onnxshot.runtimes.parallel import run_concurrently, split_threads
from onnxshot.runtimes.spool import Spool
from onnxshot.verification.causality import is_causal
from onnxshot.verification.compare_tensors import SAMPLES, closest, compare_tensors
from onnxshot.verification.io_contract import contract, difference, with_frozen
from onnxshot.verification.output_errors import OutputRow, Outputs, Picks, Sums, Totals
from onnxshot.verification.output_notes import answers_note, optimizer_loses, optimizer_note, part_note, pick_notes
from onnxshot.verification.paired_runs import run_both
from onnxshot.verification.tensor_errors import Scaled, TensorRow

_NO_SAMPLES = "there are no samples to compare on"
_CLEAR_DB = 40.0  # above it a tensor surely stands for the same value in both models


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a candidate is from the float model.

    Attributes:
        outputs: One row per output that both models have.
        sqnr_db: SQNR in dB over all samples and float outputs; None if there is no float output.
        unoptimized_db: SQNR in dB over the first samples, with the runtime's graph optimizations off.
        optimized_db: SQNR in dB over the same samples, with the optimizations on, as deployed.
        samples: Number of samples compared.
        distinct: Number of different samples among them.
        agreement: Top-1 agreement, 0..1, of the first output that looks like class scores; None if none does.
        cases: Number of cases that it is a share of; 0 if unknown.
        contract: First difference of inputs and outputs, as a clause; empty if there is none.
        not_finite: Outputs and samples where only the candidate is NaN or infinite, one clause each.
        notes: Remarks for the report.
        one_answer: Remarks on class scores whose highest class is always the same; they belong to an agreement.
        tensors: Rows of the inner tensors asked for, lowest SQNR first.
        tensor_samples: Number of samples, the first ones, that `tensors` covers.
        random: Nodes that draw random numbers. Both models were made to draw the same ones.
        ordered: Share of identical picks, 0..1, of each output that TopK or a similar node orders (see
            `onnxshot.comparison.ordering_nodes`).
        copied: Outputs that partly copy inputs. Only the computed part is compared.
        tokens: Figures of the logits of a language model; None if the model is none.
        token_inputs: Inputs of token ids.
    """

    outputs: tuple[OutputRow, ...]
    sqnr_db: float | None
    unoptimized_db: float | None
    optimized_db: float | None
    samples: int
    distinct: int
    agreement: float | None = None
    cases: int = 0
    contract: str = ""
    not_finite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    one_answer: tuple[str, ...] = ()
    tensors: tuple[TensorRow, ...] = ()
    tensor_samples: int = 0
    random: tuple[str, ...] = ()
    ordered: Mapping[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    tokens: TokenScores | None = None
    token_inputs: tuple[str, ...] = ()

    @property
    def optimizer_changes_results(self) -> bool:
        """True if the optimizations lose more than GAP_DB of SQNR in any output."""
        rows = (optimizer_loses(row.optimized_db, row.unoptimized_db) for row in self.outputs)
        return optimizer_loses(self.optimized_db, self.unoptimized_db) or any(rows)


def compare(
    reference: Runnable,
    candidate: Runnable,
    samples: Iterable[Sample],
    *,
    tensors: Sequence[str] | None = (),
    threads: int = 2,
    inside: LeanModel | None = None,
    scaled: Mapping[str, Scaled] | None = None,
    form: LeanModel | None = None,
    sizes: FixedShapes = NO_FIXED_SHAPES,
    opened: OpenModels | None = None,
) -> Comparison:
    """Run both models over the samples and measure their differences.

    As many samples run at once as there are threads. The first samples run once more with the runtime's graph
    optimizations off. That run also gives the inner tensors. Outputs are matched by name. Outputs that only one model
    has, and types that numpy cannot hold, are left out and noted. The effects of random numbers, of nearly equal values
    that change places in TopK, and of copied inputs are removed from all figures (see `onnxshot.comparison`).

    Memory: two sessions, the outputs of a few samples, and the feeds of the first samples. Large models are run in
    parts: then two parts, and `memory.held_bytes()` of outputs; more are spilled to a temporary file.

    Args:
        reference: The float model, a file or serialized.
        candidate: The model to compare with it.
        samples: At least one sample; held-out samples for a fair figure.
        tensors: Inner tensors to compare by name; None for all of them.
        threads: CPU threads in total.
        inside: Float model whose inner tensors the candidate's are compared with, if not `reference`.
        scaled: Tensors whose channels the candidate scales by known factors, which are undone first.
        form: The reference after passes that fuse operators. A name may then stand for another value: each tensor is
            compared with both models, and the better SQNR counts.
        sizes: Dimensions that the candidate fixes on purpose. They are no difference of the contract.
        opened: Where sessions of files are kept, if the models need no edits.

    Returns:
        The comparison, with one row per output.

    Raises:
        ModelError: A model does not load or run, or the models have no output name in common.
        CalibrationError: There are no samples.
    """
    sides = with_frozen(contract(reference), sizes), contract(candidate)
    workers, threads_each = split_threads(threads, len(samples) if isinstance(samples, Sized) else None)
    start, samples = _first_and_all(samples)
    setup, float_runner, runner = _loaded(reference, candidate, start, threads_each, opened)
    names = setup.compared(float_runner.outputs, runner.outputs)
    kinds = float_runner.skipped | runner.skipped
    if not names and not kinds:
        shown = f"{_list(float_runner.outputs)} against {_list(runner.outputs)}"
        raise ModelError(f"the models have no output in common: {shown}", "give two models of the same outputs")
    outline = parsed(setup.reference)
    tokens = _tokens(outline, float_runner, names, samples, start)
    makers = makers_of(setup.reference)
    sums, picks = _sums(setup, names, makers, tokens), Picks(setup)
    matches = Matches(makers, [name for name in names if sums[name].scores is None])
    totals, first_samples, kept = Totals(), list[Sample](), Spool()
    count, has_picks, seen = 0, True, set[bytes]()
    for sample, wanted, got in run_both(float_runner, runner, samples, workers, setup):
        add_feed(digest := hashlib.blake2b(digest_size=16), sample.feed)
        seen.add(digest.digest())
        for name in names:
            if name in got:  # sort keys are missing if the candidate picked for itself
                sums[name].add(wanted[name], got[name], sample.name, totals, first=count < SAMPLES)
        if tokens is not None:
            tokens.add(sample.feed, wanted[tokens.output.logits], got[tokens.output.logits])
        picks.add(wanted, got)
        matches.add(wanted, got)
        if count < SAMPLES:
            held = {name: values.copy() for name, values in wanted.items()} if setup.orders else wanted  # no views
            first_samples.append(setup.sample(sample, held))
            for name in names:
                kept.put((id(first_samples[-1]), name), wanted[name])
            has_picks = has_picks and setup.has_picks(got)
        count += 1

    def add_unoptimized(sample: Sample, _: Outputs, got: Outputs) -> None:
        for name in (name for name in names if name in got):
            sums[name].add_plain(kept.get((id(sample), name)), got[name], sample.name, totals)

    del float_runner, runner
    memory.release()
    used = setup if has_picks else setup.unordered
    rows = compare_tensors(
        used.prepared(inside or reference), used.prepared(candidate), first_samples, tensors, threads=threads,
        outputs=[n for n in names if has_picks or not setup.is_sort_key(n)], each=add_unoptimized, scaled=scaled,
    )  # fmt: skip
    far = [row.tensor for row in rows if row.sqnr_db < _CLEAR_DB] if form is not None and setup.plain else []
    if form is not None and far:
        prepared = setup.prepared(candidate)
        others = compare_tensors(form, prepared, first_samples, far, threads=threads, scaled=scaled)
        rows = closest(rows, others)
    kept.close()
    found = _comparison(sums, totals, (count, len(seen)), matches, picks, tokens)
    notes = [f"output {name!r} is a {kind}, which is not compared" for name, kind in kinds.items()]
    return replace(
        found, contract=difference(*sides), notes=(*notes, *setup.notes, *found.notes), tensors=rows,
        tensor_samples=len(first_samples) if rows else 0,
        random=tuple(source.node for source in setup.random_nodes), copied=tuple(one.output for one in setup.copied),
        token_inputs=token_ids(outline),
    )  # fmt: skip


def _first_and_all(samples: Iterable[Sample]) -> tuple[Sample, Iterable[Sample]]:
    """The first sample, and an iterable over all of them. Raises CalibrationError if there are none."""
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
    reference: Runnable, candidate: Runnable, sample: Sample, threads: int, opened: OpenModels | None
) -> tuple[ComparisonSetup, Runner, Runner | CandidateRunner]:
    """The comparison's setup, and both models loaded for it."""
    setup = comparison_setup(reference, sample.feed)
    kept = [model for model in (reference, candidate) if isinstance(model, Path)]
    if opened is not None and setup.plain and len(kept) == 2 and all(map(opened.keeps, kept)):
        one, two = run_concurrently(*(partial(opened.runner, model) for model in kept))
        return setup, one, two
    setup, other = setup.load_candidate(candidate, reference, threads)
    return setup, Runner(setup.reference, threads=threads, whole=True), other


def _tokens(
    outline: ModelProto, float_runner: Runner, names: Sequence[str], samples: Iterable[Sample], start: Sample
) -> TokenScores | None:
    """An accumulator of the logits of a language model; None if the model is none, or its logits are not compared."""
    output = token_output(outline)
    if output is None or output.logits not in names or output.ids not in start.feed:
        return None
    some: Iterable[Sample] = samples if isinstance(samples, Dataset | Sequence) else [start]
    return TokenScores(output, is_causal(lambda feed: float_runner.run(feed, [output.logits]), some, output))


def _sums(
    setup: ComparisonSetup, names: Iterable[str], makers: Mapping[str, str], tokens: TokenScores | None = None
) -> dict[str, Sums]:
    """One accumulator per output of the models that run, by output name."""
    logits = tokens.output.logits if tokens is not None else ""
    ordered = {output for outputs in setup.ordered_outputs.values() for output in outputs}
    left_out = ordered | {one.output for one in setup.copied} | {logits}
    scores = {n: None if setup.is_sort_key(n) or n in left_out else _scores(n, makers) for n in names}
    sums = {name: Sums(setup.output_name(name), scores=one) for name, one in scores.items()}
    if logits:
        sums[logits].parts = None  # positions and words are no channels
    return sums


def _scores(name: str, makers: Mapping[str, str]) -> Scores:
    return Scores(makers.get(name, ""), logits="logits" in name.lower())


def _comparison(
    sums: Mapping[str, Sums],
    totals: Totals,
    counts: tuple[int, int],  # samples, and different ones
    matches: Matches,
    picks: Picks | None = None,
    tokens: TokenScores | None = None,
) -> Comparison:
    count, distinct = counts
    ordered = picks.matches() if picks is not None else {}
    known = matches.found()
    know_each_other(entry.scores for entry in sums.values())
    rows = tuple(_with_picks(_with_match(entry.row(), known.get(name)), ordered) for name, entry in sums.items())
    if tokens is not None and tokens.positions:
        own = Match(CLASSES, tokens.agreed, tokens.positions)
        logits, share, of = tokens.output.logits, tokens.agreement, tokens.positions
        rows = tuple(
            replace(row, agreement=share, cases=of, match=own) if row.name == logits else row for row in rows
        )
    return Comparison(
        outputs=rows,
        sqnr_db=totals.all.value,
        unoptimized_db=totals.plain.value,
        optimized_db=totals.first.value,
        samples=count,
        distinct=distinct,
        agreement=next((r.agreement for r in rows if r.agreement is not None), None),
        cases=next((r.cases for r in rows if r.agreement is not None), 0),
        not_finite=tuple(text for entry in sums.values() for text in entry.not_finite),
        notes=tuple(filter(None, (
            *(pick_notes(picks) if picks is not None else ()),
            *(part_note(r) for r in rows if r.part is not None),
            *map(optimizer_note, rows),
            *(f"output {r.name!r}: other shapes on {r.other_shape} of {count} samples" for r in rows if r.other_shape),
        ))),
        one_answer=tuple(
            filter(None, (answers_note(row, sums[name].scores) for name, row in zip(sums, rows, strict=True)))
        ),
        ordered={name: match.share for name, match in ordered.items()},
        tokens=tokens if tokens is not None and tokens.positions else None,
    )


def _with_match(row: OutputRow, match: Match | None) -> OutputRow:
    """The row with what is counted in its output.

    The agreement of a sigmoid is about what is above 0.5, not about the highest of several values.
    """
    if match is None:
        return row
    if match.kind in (DECISIONS, LABELS):
        row = replace(row, agreement=match.share, cases=match.of)
    return replace(row, match=match)


def _with_picks(row: OutputRow, ordered: Mapping[str, Match]) -> OutputRow:
    """Adjust the row of an output that TopK or a similar node orders: its agreement is the share of identical picks."""
    match = ordered.get(row.name)
    if match is None:
        return row
    equal = None if row.equal is None else min(row.equal, match.share)
    return replace(row, agreement=match.share, cases=match.of, match=match, equal=equal)


def compare_loaded(reference: Runnable, candidate: Loaded, samples: Dataset, *, threads: int = 2) -> Comparison:
    """Compare a model loaded in any runtime with an .onnx file run in ONNX Runtime, by their outputs alone.

    Outputs that depend on random numbers, on the order of TopK or on copied inputs are left out with a note: an
    artifact of another runtime cannot be edited to make them comparable.

    Args:
        reference: The float model, a file or serialized.
        candidate: The loaded artifact.
        samples: Samples to run.
        threads: CPU threads of the reference.

    Raises:
        ModelError: A model does not run, or the models have no output name in common.
        CalibrationError: There are no samples.
    """
    float_runner = Runner(reference, threads=threads)
    names = [name for name in float_runner.outputs if name in candidate.outputs]
    if not names:
        raise ModelError(f"no output in common: {_list(float_runner.outputs)} against {_list(candidate.outputs)}")
    if not len(samples):
        raise CalibrationError(_NO_SAMPLES)
    setup = comparison_setup(reference, samples[0].feed)
    common, names = names, _comparable(setup, names)
    makers = makers_of(reference)
    sums, totals = {name: Sums(name, scores=_scores(name, makers)) for name in names}, Totals()
    matches = Matches(makers, [name for name in common if name not in names])
    alike = ComparisonSetup(reference)
    for sample, wanted, got in run_both(float_runner, candidate, samples if names else [samples[0]], 1, alike):
        for name in names:
            sums[name].add(wanted[name], got[name], sample.name, totals, first=False)
        matches.add(wanted, got)
    found = _comparison(sums, totals, (len(samples), len(samples)), matches)
    left_out = [name for name in common if name not in names]
    if not left_out:
        return found
    note = f"not compared in this runtime: {_list(left_out)}, which {_why_left_out(setup)}"
    return replace(found, notes=(*found.notes, note))


def _comparable(setup: ComparisonSetup, names: Iterable[str]) -> list[str]:
    """The outputs that can be compared without editing the candidate."""
    if setup.random_nodes:
        return []
    ordered = {name for outputs in setup.ordered_outputs.values() for name in outputs}
    hidden = ordered | {one.output for one in setup.copied}
    return [name for name in names if name not in hidden]


def _why_left_out(setup: ComparisonSetup) -> str:
    """Why outputs cannot be compared without editing the candidate, as a clause."""
    if setup.random_nodes:
        return f"random numbers change from run to run ({setup.random_nodes[0].node!r})"
    parts = [f"{order.op} orders" for order in setup.orders[:1]] + ["copy inputs" for _ in setup.copied[:1]]
    return " or ".join(parts)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
