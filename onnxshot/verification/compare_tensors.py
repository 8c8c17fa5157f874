"""Find where accuracy is lost: compare inner tensors of a candidate with those of the float model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.proto_edits import PREFIX
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import concrete_shapes
from onnxshot.runtimes.ort_runtime import Runner, is_large
from onnxshot.runtimes.parallel import in_order, run_concurrently
from onnxshot.verification.tensor_errors import Scaled, TensorRow, TensorSums, pairs_of
from onnxshot.verification.tensor_walk import Seen, Tensors, groups, in_parts, workers_for

SAMPLES = 4
"""Most samples that inner tensors are compared on: the first few show where the error comes from."""

_MANY = 2000  # nodes: optimizing more takes longer than it saves in SAMPLES runs


def compare_tensors(
    reference: Path | bytes | Model | LeanModel,
    candidate: Path | bytes | Model | LeanModel,
    samples: Iterable[Sample],
    tensors: Sequence[str] | None = None,
    *,
    threads: int = 2,
    outputs: Sequence[str] = (),
    each: Callable[[Sample, Tensors, Tensors], None] | None = None,
    scaled: Mapping[str, Scaled] | None = None,
) -> tuple[TensorRow, ...]:
    """Compare the tensors that both models have by name.

    The candidate runs with the runtime's optimizations off. A quantized tensor is compared after its Q/DQ pair. Passes
    that merge or rescale operators change what a name stands for, so `reference` should be the float model as it was
    just before quantization.

    Memory: two sessions and `memory.held_bytes()` of tensors, whatever the number of tensors and samples. Of a model in
    parts, two parts and the tensors in them; both models are cut at the same places and walked side by side.

    Args:
        reference: The float model.
        candidate: The model to compare with it.
        samples: The first SAMPLES of them are run.
        tensors: Names to compare; None for all tensors of the top-level graph.
        threads: CPU threads in total.
        outputs: Outputs to hand to `each`.
        each: Called once per sample, in order, with the sample and the `outputs` of the float model and of the
            candidate.
        scaled: Tensors whose channels the candidate scales by known factors, which are undone before comparing.

    Returns:
        One row per tensor, lowest SQNR first.

    Raises:
        ModelError: A model cannot be read or does not run.
    """
    used = list(itertools.islice(samples, SAMPLES))
    if not used:
        return ()
    judge, other = LeanModel.of(reference), LeanModel.of(candidate)
    nodes = [n for n in judge.proto.graph.node if n.op_type != "Constant"]
    makers = {o: n.op_type for n in nodes for o in n.output if o and not o.startswith(PREFIX)}
    pairs = pairs_of(other)
    there = {o for n in other.proto.graph.node for o in n.output}
    names = [n for n in dict.fromkeys(makers if tensors is None else tensors) if n in makers and n in there]
    shapes = concrete_shapes(judge.to_graph(), {k: v.shape for k, v in used[0].feed.items()})
    takes = {name: pairs[name].output if name in pairs else name for name in names}
    sums = {name: TensorSums(makers[name], pairs.get(name), (scaled or {}).get(name)) for name in names}
    look = in_parts if is_large(judge) or is_large(other) else _whole
    for sample, wanted, got in look(judge, other, used, takes, sums, shapes, outputs, threads):
        if each is not None:
            each(sample, wanted, got)
    order = {name: place for place, name in enumerate(makers) if name in sums}  # as the nodes stand in the graph
    rows = [replace(entry.row(name), depth=order[name]) for name, entry in sums.items() if entry.total.count]
    return tuple(sorted(rows, key=lambda row: (row.sqnr_db, row.tensor)))


def _runners(
    judge: LeanModel, other: LeanModel, wanted: Sequence[str], got: Sequence[str], threads: int
) -> tuple[Runner, Runner]:
    """Both models, which give these tensors."""
    wanted, got = list(dict.fromkeys(wanted)), list(dict.fromkeys(got))
    few = len(judge.proto.graph.node) <= _MANY
    first, second = run_concurrently(
        lambda: Runner(
            judge.exposing(wanted), optimize=few, threads=threads, outputs=wanted, whole=True, inner=True
        ),
        lambda: Runner(other.exposing(got), optimize=False, threads=threads, outputs=got, whole=True),
    )
    return first, second


def _whole(
    judge: LeanModel, other: LeanModel, samples: Sequence[Sample], takes: Mapping[str, str],
    sums: Mapping[str, TensorSums], shapes: Mapping[str, tuple[int, ...]], outputs: Sequence[str], threads: int,
) -> Iterator[Seen]:  # fmt: skip
    """Run both models; arguments and result are those of `in_parts`."""
    workers, threads = workers_for(takes, shapes, len(samples), threads)
    for group in groups(takes, shapes):
        taken = [takes[name] for name in group]
        one, two = _runners(judge, other, [*group, *outputs], [*taken, *outputs], threads)
        work = partial(_run_sample, one, two, {name: takes[name] for name in group}, sums, outputs)
        for sample, wanted, got, own in in_order(work, samples, workers):
            for name, part in own.items():
                sums[name].join(part)
            if outputs:
                yield sample, wanted, got
        outputs = ()


def _run_sample(
    judge: Runner, other: Runner, takes: Mapping[str, str], sums: Mapping[str, TensorSums], outputs: Sequence[str],
    sample: Sample,
) -> tuple[Sample, Tensors, Tensors, dict[str, TensorSums]]:  # fmt: skip
    """The outputs of both models on one sample, and the errors of each tensor on it."""
    wanted, got = judge.run(sample.feed), other.run(sample.feed)
    own = {name: sums[name].empty() for name in takes}
    for name, taken in takes.items():
        if name in wanted and taken in got:  # types that numpy cannot hold are missing
            own[name].add(wanted[name], got[taken])
    # An output of a session is a view that keeps all memory of the session.
    return sample, {n: wanted[n].copy() for n in outputs}, {n: got[n].copy() for n in outputs}, own


def closest(rows: Iterable[TensorRow], others: Iterable[TensorRow]) -> tuple[TensorRow, ...]:
    """For each tensor the row with the higher SQNR, with the operator of the first set; lowest SQNR first."""
    found = {row.tensor: row for row in rows}
    for row in others:
        if row.tensor not in found or row.sqnr_db > found[row.tensor].sqnr_db:
            first = found.get(row.tensor)
            found[row.tensor] = row if first is None else replace(row, op=first.op, depth=first.depth)
    return tuple(sorted(found.values(), key=lambda row: (row.sqnr_db, row.tensor)))
