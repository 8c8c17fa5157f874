"""Choose ranges by the error of the network's outputs, which a tensor's own error does not predict.

Each tensor is quantized alone in the float model, with its scale and zero point as model inputs, so that one session
measures any number of ranges. Rounding errors of different tensors are nearly independent, so the best range of each
tensor alone is kept.
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
"""Factors that a range is multiplied by; the result is limited to the extremes of the tensor."""
_FIRST_LOOK = 3  # all tensors are measured on a third of the samples
_NOISE = 0.95  # ranges are searched for the tensors that cause this share of the error power,
_MOST = 16  # for this many at most
_GAIN_DB = 0.3  # least gain of another range

_Outputs = Mapping[str, NDArray[Any]]


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

    Memory: two models, and the outputs of all samples.

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
            progress("tensors measured", done, len(free))
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
    """The groups of tensors that together cause most of the error, the largest share first."""
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
    """Yield the SQNR in dB of the outputs, balanced over outputs, for each of the quantization parameters of one group.

    Only the tensors of that group are quantized.
    """
    proto, scale, zero_point = _alone(model, plan, group)
    runner = CandidateRunner(how, proto.SerializeToString(), threads=1)
    for given in params:
        extra = {scale: np.asarray(given.scale, np.float32), zero_point: np.asarray(given.zero_point)}
        feeds = ({**sample.feed, **extra} for sample in samples)
        pairs = zip(wanted, in_order(runner.run, feeds, threads), strict=True)
        yield balanced_db(joined(sums_of(a, b, how.compared(a, b)) for a, b in pairs))


def _alone(model: Model, plan: Plan, group: str) -> tuple[ModelProto, str, str]:
    """Quantize one group of tensors in the float model; also return the input names of its scale and zero point."""
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
