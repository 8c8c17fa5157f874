"""Compute scales from calibration statistics: clip ranges, scales and zero points of tensor groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.range_methods import Range, choose_range, range_sqnr_db
from onnxshot.calibration.stats import NO_STATS, TensorStats, merge
from onnxshot.errors import UsageError
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import op_of
from onnxshot.maths.affine import UINT8, QuantParams, QuantScheme, params_from_range
from onnxshot.maths.smoothquant import STRENGTH, smoothing_factors
from onnxshot.planning.plan import Plan, TensorPlan

TRAINED = "trained"
"""Range method in reports for ranges that come from a quantized input model."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Calibration statistics of a model, with a cache of the ranges chosen from them.

    Attributes:
        stats: tensor name -> its statistics.
        chosen: (tensor names, scheme, range method) -> clip range. Plans of one model share most ranges.
        strengths: tensor name -> SmoothQuant strength (alpha) found by search, for inputs of dynamic ops. 0 means no
            smoothing; tensors without an entry use the default.
    """

    stats: Mapping[str, TensorStats]
    chosen: dict[tuple[tuple[str, ...], QuantScheme, str], Range] = field(default_factory=dict)
    strengths: Mapping[str, float] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> TensorStats | None:
        """Statistics of the tensor, or of the one that it holds the values of, moved at most; None without either."""
        while tensor.name not in self.stats:
            maker = edit.producer(tensor)
            if maker is None or not op_of(maker).keeps_range:
                return None
            tensor = maker.inputs[0]
        return self.stats[tensor.name]

    def key(self, sources: Mapping[str, TensorPlan], method: str) -> tuple[tuple[str, ...], QuantScheme, str]:
        """Key in `chosen` for a group. sources: its tensors. method: range method of tensors without their own."""
        own = next((planned.method for planned in sources.values() if planned.method is not None), method)
        return tuple(sources), next(iter(sources.values())).scheme, own

    def merged(self, tensors: Mapping[str, Tensor], group: str, sources: Iterable[str]) -> TensorStats:
        """Merged statistics of all tensors that share the group's scale. Raises UsageError if one was not observed."""
        merged = NO_STATS
        for name in sources:
            found = self.of(tensors[name])
            if found is None:
                raise UsageError(f"no statistics for tensor {name!r}", "calibrate the same model and options")
            merged = merge(merged, found)
        if not merged.count:
            raise UsageError(f"tensor {group!r} was empty in every sample", "calibrate on samples that reach it")
        return merged

    def peak(self, tensor: Tensor) -> float:
        """Largest absolute value of a tensor; 0 if unknown."""
        if isinstance(tensor, Constant):
            values = weights.read(tensor)
            return float(np.abs(values).max()) if values.size else 0.0
        found = self.of(tensor)
        return max(abs(found.low), abs(found.high)) if found is not None else 0.0

    def spread(self, concat: Node) -> tuple[float, str]:
        """(largest over smallest peak of a Concat's inputs, text that names both); (1, "") if they are unknown."""
        known = [(t.name, peak) for t in concat.inputs if (peak := self.peak(t)) > 0]
        if len(known) < 2:
            return 1.0, ""
        (small, low), (large, high) = min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])
        return high / low, f"{large} {high:.3g}, {small} {low:.3g}"

    def dynamic_db(self, tensor: Tensor) -> float | None:
        """Expected SQNR in dB of dynamic uint8, which uses the range of each sample; None without statistics."""
        found = self.stats.get(tensor.name)
        if found is None or not found.count:
            return None
        # Each sample has its own range: expect the mean of the observed ranges.
        span = Range(min(found.mean_low, 0.0), max(found.mean_high, 0.0), "dynamic", 0.0)
        return range_sqnr_db(found, span, QuantScheme(UINT8))

    def smoothing(self, tensors: Sequence[Tensor], readers: Sequence[Node]) -> NDArray[np.float32] | None:
        """SmoothQuant factors, float32 [C], for tensors [..., C] that these products read; None for no smoothing.

        Args:
            tensors: the inputs, which share one set of factors.
            readers: all MatMul and Gemm nodes that read one of them.
        """
        found = [self.stats.get(tensor.name) for tensor in tensors]
        strength = min(self.strengths.get(tensor.name, STRENGTH) for tensor in tensors)
        known = [np.asarray(stats.channel_absmax, np.float32) for stats in found if stats is not None]
        if len(known) < len(tensors) or not strength or len({absmax.shape for absmax in known}) > 1:
            return None
        x_absmax = np.max(known, axis=0)
        rows = []
        for node in readers:
            weight = np.abs(np.asarray(weights.read(node.inputs[1])))
            rows.append(weight.max(axis=0 if node.attrs.get("transB", 0) else 1))
        if any(row.shape != x_absmax.shape for row in rows):
            return None
        return smoothing_factors(x_absmax, np.max(rows, axis=0), strength)


def with_params(plan: Plan, model: Model, evidence: Evidence, method: str) -> Plan:
    """The plan with a clip range, a scale and a zero point for each tensor group.

    Args:
        plan: a plan without scales.
        model: the model of the plan.
        evidence: statistics of all tensors in `plan.observe`.
        method: range method of tensors without a method of their own.

    Raises:
        UsageError: a tensor was not observed, or was empty in all samples.
    """
    tensors = model.tensors()
    ranges: dict[str, Range] = {}
    params: dict[str, QuantParams] = {}
    for group, sources in group_members(plan).items():
        if group in plan.kept.activations:
            params[group] = plan.kept.activations[group]
            ranges[group] = _covered(params[group])
            continue
        first = next(iter(sources.values()))
        key = evidence.key(sources, method)
        if key not in evidence.chosen:
            evidence.chosen[key] = choose_range(evidence.merged(tensors, group, sources), *key[1:])
        ranges[group] = evidence.chosen[key]
        params[group] = params_of_range(ranges[group], first)
    return replace(plan, params=params, ranges=ranges)


def group_members(plan: Plan) -> dict[str, dict[str, TensorPlan]]:
    """Group name -> {name of the observed tensor -> its plan}, for the tensors that share the group's scale."""
    members: dict[str, dict[str, TensorPlan]] = {}
    for planned in plan.tensors.values():
        members.setdefault(planned.group, {})[planned.source] = planned
    return members


def params_of_range(chosen: Range, planned: TensorPlan) -> QuantParams:
    """Scale and zero point of a tensor with this clip range, within the limit of its Clip."""
    return _under(params_from_range(chosen.low, chosen.high, planned.scheme), planned.bound)


def _covered(params: QuantParams) -> Range:
    """The range that the integers of trained params represent."""
    low, high = (float(params.scale) * (q - float(params.zero_point)) for q in params.scheme.limits)
    return Range(low, high, TRAINED, 0.0)


def _under(params: QuantParams, bound: float | None) -> QuantParams:
    """Lower the scale until the largest value does not exceed `bound`: only then does Q replace the Clip."""
    if bound is None or bound <= 0:
        return params
    steps = np.float32(params.scheme.limits[1] - int(params.zero_point))
    scale, limit = params.scale, np.float32(bound)
    while limit < scale * steps < limit * np.float32(1.001):
        scale = np.nextafter(scale, np.float32(0))
    return QuantParams(params.scheme, np.asarray(scale, np.float32), params.zero_point)
