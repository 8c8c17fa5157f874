"""Keep the scales of a quantized input model: convert them to the target's types and add them to the plan.

int8 with zero point z and uint8 with zero point z + 128 represent the same values, so most scales are kept exactly. If
the target has no such form, an activation keeps its range, and a weight is quantized as in a float model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxshot.graph import Constant, Tensor, weights
from onnxshot.maths.affine import PerChannel, PerTensor, QuantParams, QuantScheme, params_from_range, quantize
from onnxshot.planning.plan import Kept, Plan, TensorPlan
from onnxshot.planning.trained_scales import Trained, same_params
from onnxshot.wording import worded


def activation_params(given: QuantParams, scheme: QuantScheme) -> tuple[QuantParams, bool]:
    """Convert the scale of an activation to another scheme.

    Returns:
        (scale and zero point, True) if the integers stay the same except for a constant shift; (scale and zero point
        for the same range, False) otherwise.
    """
    old, new = given.scheme.dtype, scheme.dtype
    if old is new or (old.bits == new.bits and not old.floating and not new.floating):
        zero = given.zero_point.astype(np.int64) + (new.qmin - old.qmin) if not new.floating else given.zero_point
        if not scheme.is_symmetric or int(zero) == scheme.midpoint:
            return QuantParams(scheme, given.scale, np.asarray(zero, new.storage)), True
    steps = np.array([old.qmin, old.qmax], np.float64) - float(given.zero_point)
    low, high = steps * float(given.scale)
    return params_from_range(low, high, scheme), False


def weight_params(
    given: QuantParams, weight: Constant, scheme: QuantScheme, axis: int | None
) -> tuple[QuantParams | None, str]:
    """Convert the scale of a weight to the target's type so that its integers stay the same except for a shift.

    Args:
        given: scale and zero point in the input model.
        weight: the float weight.
        scheme: the target's scheme. For a per-channel scheme, a per-tensor scale is repeated.
        axis: axis of the op's output channels.

    Returns:
        (scale and zero point, ""), or (None, reason) if there are no such integers.
    """
    old, new = given.scheme.dtype, scheme.dtype
    if old.floating or new.floating:
        return None, f"{old.name} weights are not {new.name}"
    granularity = given.scheme.granularity
    if isinstance(granularity, PerChannel) and granularity.axis != axis:
        return None, "its scales are not per output channel"
    offsets = scheme.midpoint - given.zero_point.astype(np.int64)
    if old.qmin + int(offsets.min()) < new.qmin or old.qmax + int(offsets.max()) > new.qmax:
        # The range of the type does not fit; the integers that occur may.
        integers = quantize(np.asarray(weights.read(weight)), given).astype(np.int64)
        if offsets.ndim:
            offsets = offsets.reshape([-1 if i == axis else 1 for i in range(len(weight.shape))])
        integers = integers + offsets
        if integers.size and (integers.min() < new.qmin or integers.max() > new.qmax):
            return None, f"its {old.name} integers do not fit symmetric {new.name}"
    scale = given.scale
    if isinstance(scheme.granularity, PerChannel) and not scale.ndim:
        scale = np.full(weight.shape[scheme.granularity.axis], scale, np.float32)
    kind = PerTensor() if not scale.ndim else PerChannel(axis or 0)
    # Not the symmetric scheme, which excludes the lowest integer: the input may use it.
    zero = np.full(scale.shape, scheme.midpoint, new.storage)
    return QuantParams(QuantScheme(new, granularity=kind), np.asarray(scale, np.float32), zero), ""


def kept_activations(trained: Trained, planned: Mapping[str, TensorPlan], tensors: Mapping[str, Tensor]) -> Kept:
    """Trained scale and zero point of each group in which a tensor has one; the tensor nearest to the source wins."""
    kept = Kept()
    members: dict[str, dict[str, TensorPlan]] = {}
    for name, plan in planned.items():
        members.setdefault(plan.group, {})[name] = plan
    for group, parts in members.items():
        chosen: tuple[str, QuantParams] | None = None
        fate = ""
        for name in dict.fromkeys((*(p.source for p in parts.values()), *parts)):
            found = trained.of(tensors[name])
            if found is None:
                continue
            if chosen is None:
                chosen = found
                params, exact = activation_params(found[1], next(iter(parts.values())).scheme)
                kept.activations[group] = params
                fate = "" if exact else f"{params.scheme.dtype.name} has no such scale here, its range is kept"
            elif not same_params(found[1], chosen[1]):
                kept.fates.setdefault(found[0], f"it shares the scale of {chosen[0]!r}")
                continue
            if kept.fates.get(found[0]) != "":
                kept.fates[found[0]] = fate
    return kept


def notes(trained: Trained, plan: Plan) -> list[str]:
    """Report notes: how many trained scales were kept, how many were completed, and why others were not kept."""
    if not trained:
        return [worded("[[complete=True]]: the model holds no Q/DQ pairs, all of it was quantized")]
    fates = {**dict.fromkeys(trained.names()), **trained.refused, **plan.kept.fates}
    exact = {name for name, fate in fates.items() if fate == ""}
    activations = len(exact & trained.activations.keys())
    of_weights = len(exact) - activations
    groups = len({t.group for t in plan.tensors.values()} - plan.kept.activations.keys())
    left = len(plan.weights) - len(plan.kept.nodes)
    lines = [
        f"{len(exact)} trained scales were kept: {activations} of activations, {of_weights} of weights",
        f"{groups + left} scales were completed: {groups} of activations, {left} of weights",
    ]
    reasons: dict[str, list[str]] = {}
    for name, fate in fates.items():
        is_weight = name in trained.weights
        unused = "its op stays in float, or folding changed it" if is_weight else "the plan has no Q/DQ pair there"
        if fate != "":
            reasons.setdefault(fate or unused, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"{len(names)} trained scales were not kept as they are: {reason}: {_some(names)}")
    return lines


def _some(names: Iterable[str]) -> str:
    first, *rest = (repr(name) for name in names)
    return ", ".join([first, *rest[:2]]) + (f" and {len(rest) - 2} more" if len(rest) > 2 else "")
