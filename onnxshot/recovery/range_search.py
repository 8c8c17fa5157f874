"""Choose ranges by the error of the network's outputs, which a tensor's own error does not predict.

Each tensor is quantized alone in the float model, which runs on from that tensor (see `ResumedRuns`), with the scale
and zero point as inputs, so that one session measures any number of ranges. Rounding errors of different tensors are
nearly independent, so the best range of each tensor alone is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.range_methods import Range
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import Sums, balanced_db, joined, sums_of
from onnxshot.comparison.comparison_setup import ComparisonSetup, comparison_setup
from onnxshot.errors import ModelError
from onnxshot.execution.resumed_runs import ResumedRuns
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.affine import QuantParams
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence, group_members, params_of_range
from onnxshot.runtimes.ort_runtime import Feed, Runner
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.spool import Spool

FACTORS = (0.4, 0.5, 0.6, 0.72, 0.85, 1.2, 1.45)
"""Factors that a range is multiplied by; the result is limited to the extremes of the tensor."""
_FIRST_LOOK = 8  # all tensors are measured on an eighth of the samples
_NOISE = 0.03  # ranges are searched for the tensors that each cause this share of the error power,
_MOST = 8  # for this many at most
_GAIN_DB = 0.3  # least gain of another range
_RACED_ON = 4  # every fourth sample shows which ranges may be better;
_BEHIND_DB = 0.5  # those so far behind the best are not measured on the others

_WEIGHTS = 8  # share of the budget that a model's weights may take, as its sections stay loaded

_Outputs = Mapping[str, NDArray[Any]]


def too_large(model: Model) -> str:
    """Why ranges of a model are not refined, in words; empty for one that fits the memory budget."""
    size, most = model.weight_bytes(), memory.budget() // _WEIGHTS
    if size <= most:
        return ""
    return (
        f"ranges were not refined by the error of the outputs: {size / 1e6:.0f} MB of weights exceed the "
        f"{most / 1e6:.0f} MB that the memory budget leaves for it"
    )


def refine_ranges(
    model: Model,
    plan: Plan,
    evidence: Evidence,
    method: str,
    samples: Sequence[Sample],
    *,
    threads: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """Choose better ranges for the tensors that cause most of the error of the outputs.

    Memory: see `ResumedRuns`; outputs past `memory.waiting_bytes()` wait in a temporary file.

    Args:
        model: the float model.
        plan: its plan, with scales.
        evidence: what the scales were chosen from.
        method: the range method that they were chosen by.
        samples: what ranges are measured on.
        threads: of the sessions.
        progress: called after each tensor.

    Returns:
        The evidence with the new ranges.
    """
    how = comparison_setup(LeanModel.of(model), samples[0].feed)
    runner = Runner(how.reference, threads=1, whole=True)
    feeds, wanted = list[Feed](), Spool(memory.waiting_bytes())
    for number, outputs in enumerate(runner.run_all([sample.feed for sample in samples], threads)):
        feeds.append(how.feed(samples[number].feed, outputs))
        for name, values in outputs.items():
            wanted.put((name, number), values)
    del runner
    trial = _Trial(how, _resumed(how, model, plan, samples[0].feed), feeds, wanted, tuple(outputs), threads)
    free = [group for group in plan.params if group not in plan.kept.activations]
    noise = {}
    trial.prepare(free, -(-len(samples) // _FIRST_LOOK))
    for done, group in enumerate(free, 1):
        db = trial.sqnrs(group, [plan.params[group]])[0]
        noise[group] = 10.0 ** (-db / 10.0)
        trial.runs.release(group)
        if progress is not None:
            progress("tensors measured", done, len(free))
    loudest = _loudest(noise)
    trial.prepare(loudest, len(samples))
    chosen, members, tensors = dict(evidence.chosen), group_members(plan), model.tensors()
    for done, group in enumerate(loudest, 1):
        sources = members[group]
        known = evidence.merged(tensors, group, sources)
        now = plan.ranges[group]
        ranges = sorted([now, *_others(now, known.low, known.high)], key=lambda r: r.high - r.low)
        params = [params_of_range(r, next(iter(sources.values()))) for r in ranges]
        best = trial.best_of(group, params, ranges.index(now))
        if ranges[best] is not now:
            chosen[evidence.key(sources, method)] = ranges[best]
        trial.runs.release(group)
        if progress is not None:
            progress("ranges tried", done, len(loudest))
    return replace(evidence, chosen=chosen)


def _loudest(noise: Mapping[str, float]) -> list[str]:
    """The groups of tensors that cause much of the error of the outputs, the largest share first."""
    order = sorted(noise, key=lambda group: -noise[group])
    total = max(sum(noise.values()), math.ulp(0.0))
    return [group for group in order if noise[group] >= _NOISE * total][:_MOST]


def _others(now: Range, low: float, high: float) -> Iterator[Range]:
    for factor in FACTORS:
        smaller = max(now.low * factor, low), min(now.high * factor, high)
        if smaller != (now.low, now.high):
            yield Range(*smaller, "outputs", now.clipped)


@dataclass(slots=True)
class _Trial:
    """Measures ranges of one group of tensors at a time on samples.

    Attributes:
        how: how outputs are compared.
        runs: runs of the model with one group quantized.
        feeds: samples, with what the reference imposes.
        wanted: the outputs of the reference, by (name, sample).
        names: of these outputs.
        threads: samples that run at once.
        count: samples that `prepare` was told of.
    """

    how: ComparisonSetup
    runs: ResumedRuns
    feeds: Sequence[Feed]
    wanted: Spool
    names: tuple[str, ...]
    threads: int
    count: int = 0

    def prepare(self, groups: Sequence[str], count: int) -> None:
        """Get ready to measure these groups on the first `count` samples."""
        self.count = count
        self.runs.prepare(self.feeds[:count], groups, self.threads)

    def sqnrs(self, group: str, params: Sequence[QuantParams]) -> list[float]:
        """SQNR of the outputs in dB with each of the quantization parameters, balanced over outputs."""
        return [balanced_db(joined(self._sums(group, one, range(self.count)).values())) for one in params]

    def best_of(self, group: str, params: Sequence[QuantParams], now: int) -> int:
        """Index of the best parameters: from `now`, on a few samples, in the direction in which the error falls.

        Those that are not behind on the few samples are measured on all; they must gain _GAIN_DB over `now`.

        Args:
            group: the group of tensors.
            params: in order of the range.
            now: index of the present ones.
        """
        few = range(0, self.count, _RACED_ON)
        rest = [i for i in range(self.count) if i not in few]
        found: dict[int, dict[int, Sums]] = {}

        def measured(index: int) -> float:
            if index not in found:
                found[index] = self._sums(group, params[index], few)
            return balanced_db(joined(found[index].values()))

        best = max((i for i in (now, now - 1, now + 1) if 0 <= i < len(params)), key=measured)
        step = best - now
        while step and 0 <= best + step < len(params) and measured(best + step) > measured(best):
            best += step
        first = {index: measured(index) for index in found}
        left = [i for i, db in first.items() if i != now and db > first[now] and db > first[best] - _BEHIND_DB]
        if not left:
            return now
        for index in (now, *left):
            found[index] |= self._sums(group, params[index], rest)
        total = {index: balanced_db(joined(found[index].values())) for index in (now, *left)}
        best = max(total, key=lambda index: total[index])
        return best if total[best] >= total[now] + _GAIN_DB else now

    def _sums(self, group: str, params: QuantParams, samples: Sequence[int]) -> dict[int, Sums]:
        def work(sample: int) -> Sums:
            wanted = {name: self.wanted.get((name, sample)) for name in self.names}
            try:
                got: _Outputs = self.runs.run(group, params, sample)
            except ModelError:
                if not self.how.orders:
                    raise
                got = {name: np.zeros_like(values) for name, values in wanted.items()}  # its picks do not fit
            return sums_of(wanted, got, self.how.compared(wanted, got))

        return dict(zip(samples, in_order(work, samples, self.threads), strict=True))


def _resumed(how: ComparisonSetup, model: Model, plan: Plan, feed: Feed) -> ResumedRuns:
    """Runs of the float model with one group of tensors quantized before the nodes with weights."""
    copy = copy_of(model)
    nodes = tuple(node for node in plan.nodes if node.has_weight)
    InsertQdq(replace(plan, nodes=nodes, weights={})).run(copy)
    prepared = LeanModel.of(how.prepared(LeanModel.of(copy)))
    groups: dict[str, list[str]] = {}
    for name, planned in plan.tensors.items():
        groups.setdefault(planned.group, []).append(name)
    return ResumedRuns(prepared, groups, sizes_on(model, feed).shapes)
