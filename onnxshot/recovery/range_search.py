"""Ranges by what they do to the network's outputs: the error of a tensor does not know how much of it matters.

Each tensor is quantized alone in the float model, with its scale and zero point as inputs: one session tells of any
number of ranges. Rounding noises of different tensors are independent, so that the best range of each alone is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxshot.calibration.range_methods import Range
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import balanced_db, joined, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.execution.parallel import in_order
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.maths.affine import QuantParams
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence, group_members, params_of_range
from onnxshot.runtimes.ort_runtime import Runner

FACTORS = (0.4, 0.5, 0.6, 0.72, 0.85, 1.2, 1.45)
"""What a range is multiplied by, as far as it stays within the extremes."""
_FIRST_LOOK = 3  # times fewer samples on which all tensors are looked at
_NOISE = 0.95  # share of all noise whose makers are looked at more closely
_MOST = 16  # of them
_GAIN_DB = 0.3  # by which a range must be better

_Outputs = Mapping[str, NDArray[Any]]


def refined(
    model: Model,
    plan: Plan,
    evidence: Evidence,
    method: str,
    samples: Sequence[Sample],
    *,
    threads: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """What is known of the tensors, with better ranges for those that make most of the noise at the outputs.

    method: that the plan's ranges were chosen by. Held at any time: two models and the outputs of the samples.
    """
    how = comparison_setup(model.to_proto().SerializeToString(), samples[0].feed)
    runner = Runner(how.reference, threads=1, whole=True)
    wanted = list(in_order(lambda sample: runner.run(sample.feed), samples, threads))
    samples = [how.sample(sample, outputs) for sample, outputs in zip(samples, wanted, strict=True)]
    first = slice(-(-len(samples) // _FIRST_LOOK))
    noise: dict[str, float] = {}
    free = [group for group in plan.params if group not in plan.kept.activations]
    for done, group in enumerate(free, 1):
        db = _sqnrs(how, model, plan, group, [plan.params[group]], samples[first], wanted[first], threads)
        noise[group] = 10.0 ** (-next(db) / 10.0)
        if progress is not None:
            progress("tensors looked at", done, len(free))
    loudest = _loudest(noise)
    chosen, members, tensors = dict(evidence.chosen), group_members(plan), model.tensors()
    for done, group in enumerate(loudest, 1):
        sources = members[group]
        known = evidence.merged(tensors, group, sources)
        now = plan.ranges[group]
        ranges = [now, *_others(now, known.low, known.high)]
        params = [params_of_range(r, next(iter(sources.values()))) for r in ranges]
        found = list(_sqnrs(how, model, plan, group, params, samples, wanted, threads))
        best = int(np.argmax(found))
        if found[best] >= found[0] + _GAIN_DB:
            chosen[evidence.key(sources, method)] = ranges[best]
        if progress is not None:
            progress("ranges tried", done, len(loudest))
    return replace(evidence, chosen=chosen)


def _loudest(noise: Mapping[str, float]) -> list[str]:
    """The groups that together make most of the noise, the loudest first."""
    order = sorted(noise, key=lambda group: -noise[group])
    share = np.cumsum([noise[group] for group in order]) / max(sum(noise.values()), math.ulp(0.0))
    return order[: min(int(np.searchsorted(share, _NOISE)) + 1, _MOST)]


def _others(now: Range, low: float, high: float) -> Iterator[Range]:
    for factor in FACTORS:
        smaller = max(now.low * factor, low), min(now.high * factor, high)
        if smaller != (now.low, now.high):
            yield Range(*smaller, "outputs", now.clipped)


def _sqnrs(
    how: ComparisonSetup,
    model: Model,
    plan: Plan,
    group: str,
    params: Sequence[QuantParams],
    samples: Sequence[Sample],
    wanted: Sequence[_Outputs],
    threads: int,
) -> Iterator[float]:
    """SQNR in dB of the outputs, each by its own scale, where the tensors of this group alone are quantized.

    One for each of these params.
    """
    proto, scale, zero_point = _alone(model, plan, group)
    runner = CandidateRunner(how, proto.SerializeToString(), threads=1)
    for given in params:
        extra = {scale: np.asarray(given.scale, np.float32), zero_point: np.asarray(given.zero_point)}
        feeds = ({**sample.feed, **extra} for sample in samples)
        pairs = zip(wanted, in_order(runner.run, feeds, threads), strict=True)
        yield balanced_db(joined(sums_of(a, b, how.compared(a, b)) for a, b in pairs))


def _alone(model: Model, plan: Plan, group: str) -> tuple[ModelProto, str, str]:
    """The float model with one group of tensors quantized; names of the inputs that are its scale and zero point."""
    tensors = {name: planned for name, planned in plan.tensors.items() if planned.group == group}
    copy = load_model(model.to_proto())
    nodes = tuple(node for node in plan.nodes if node.has_weight)
    InsertQdq(replace(plan, nodes=nodes, weights={}, tensors=tensors)).run(copy)
    proto = copy.to_proto()
    made = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    scale, zero_point = made.input[1:3]
    for constant in [t for t in proto.graph.initializer if t.name in (scale, zero_point)]:
        proto.graph.input.append(helper.make_tensor_value_info(constant.name, constant.data_type, []))
        proto.graph.initializer.remove(constant)
    return proto, scale, zero_point
