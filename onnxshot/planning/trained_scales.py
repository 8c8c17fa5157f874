"""Scales that a quantized input brings: read off its Q/DQ pairs, and given to the plan in the target's own types.

The same integers under another name are exact: int8 with zero point 0 is uint8 with zero point 128. Where no such name
exists, an activation keeps its range, and a weight is quantized as in a float model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import op_of
from onnxshot.maths.affine import (
    FLOAT8E4M3FN,
    INT4,
    INT8,
    INT16,
    UINT4,
    UINT8,
    UINT16,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantScheme,
    params_from_range,
    quantize,
)
from onnxshot.maths.dequantize_stored import dequantize_channels
from onnxshot.planning.plan import Kept, Plan, TensorPlan

_TYPES = {t.name: t for t in (UINT8, INT8, UINT16, INT16, UINT4, INT4, FLOAT8E4M3FN)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CUTS = ("Relu", "Clip")  # quantizing before it and after it give the same integers: all three are monotone


@dataclass(frozen=True, slots=True)
class Given:
    """Integers that a weight came in; scale and zero point of all, or one for each index along the axis."""

    values: Constant
    scale: Constant
    zero: Constant | None
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What the pairs of a model say of its tensors.

    Attributes:
        activations: scale and zero point by name of the tensor.
        weights: the same by name of the weight, with the channel axis where there is one.
        refused: why a tensor's pair cannot be kept whatever the target, by name.
        stored: the integers that weights came in, by name of the weight; others came as floats behind a pair.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Given] = field(default_factory=dict)
    _stored: dict[bytes, str] = field(default_factory=dict)  # by the values that they stand for, of no shape
    _contents: dict[bytes, tuple[str, QuantParams]] = field(default_factory=dict)
    _known: dict[Constant, tuple[str, QuantParams] | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.activations or self.weights or self.refused)

    def names(self) -> list[str]:
        """Names of all tensors that came with a pair."""
        return list(dict.fromkeys((*self.activations, *self.weights, *self.refused)))

    def of(self, tensor: Tensor) -> tuple[str, QuantParams] | None:
        """The pair of the tensor, or of the one whose values it only moves or cuts off; with that one's name."""
        while tensor.name not in self.activations:
            maker = edit.producer(tensor)
            if maker is None or not (op_of(maker).keeps_range or maker.op in _CUTS):
                return None
            tensor = maker.inputs[0]
        return tensor.name, self.activations[tensor.name]

    def of_weight(self, weight: Constant) -> tuple[str, QuantParams] | None:
        """The pair of a weight, known by its values: folding gives it another name, and may transpose a matrix."""
        if weight not in self._known:
            self._known[weight] = self._contents.get(_digest(weights.read(weight))) if self._contents else None
        return self._known[weight]

    def stored_as(self, values: NDArray[Any]) -> str | None:
        """The weight that came in integers which stand for these values, in another shape perhaps; None: none did."""
        return self._stored.get(_digest(values.reshape(-1)))

    def add_stored(self, name: str, values: NDArray[Any], given: Given) -> None:
        """Remember the integers of a weight, by the values that they stand for, also where a matrix is turned."""
        self.stored[name] = given
        for form in (values, values.T) if values.ndim == 2 else (values,):
            self._stored.setdefault(_digest(form.reshape(-1)), name)

    def add_weight(self, name: str, values: NDArray[Any], params: QuantParams) -> None:
        """Remember the pair of a weight, also for its transpose where it is a matrix."""
        self.weights[name] = params
        self._contents.setdefault(_digest(values), (name, params))
        if values.ndim == 2:
            granularity = params.scheme.granularity
            if isinstance(granularity, PerChannel):
                scheme = replace(params.scheme, granularity=PerChannel(1 - granularity.axis))
                params = QuantParams(scheme, params.scale, params.zero_point)
            self._contents.setdefault(_digest(np.ascontiguousarray(values.T)), (name, params))


NOTHING = Trained()


def read_pairs(model: Model) -> Trained:
    """The pairs of a model in which constants are folded, before they are taken out.

    Raises ModelError where a scale is not a finite number above 0, or the two halves of a pair do not fit.
    """
    found = Trained()
    names = _names_after(model)
    for _, node in model.walk():
        if node.op != "DequantizeLinear":
            continue
        source, stored = node.inputs[0], isinstance(node.inputs[0], Constant)
        maker = edit.producer(source)
        if not stored and (maker is None or maker.op != "QuantizeLinear"):
            continue  # an integer op makes it: stripping says so
        if stored and weights.elem_type(source) == TensorProto.INT32:
            continue  # a bias: runtimes make its scale from those of the input and the weight
        params, reason = _params(node)
        if maker is not None:
            _refuse_unequal(maker, node, _params(maker)[0], params)
            source = _origin(maker)
        name = names.get(source.name, source.name)
        if params is None:
            found.refused[name] = reason
        elif isinstance(source, Constant):
            values = weights.read(source)
            params = _fitting(node, params, values.shape)
            if stored:
                values = dequantize_channels(values, *_raw(node))
                _remember(found, node, source, values)
            found.add_weight(source.name, values, params)
        elif not isinstance(params.scheme.granularity, PerTensor):
            found.refused[name] = "it has a scale per channel"
        elif not _equal(found.activations.setdefault(name, params), params):
            found.refused[name] = "it has several pairs, of which the first is kept"
    return found


def _remember(found: Trained, node: Node, source: Constant, values: NDArray[Any]) -> None:
    """Note the integers of a weight, which its DequantizeLinear goes away from."""
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if isinstance(scale, Constant) and (zero is None or isinstance(zero, Constant)):
        axis = int(node.attrs.get("axis", 1)) % max(values.ndim, 1)
        found.add_stored(source.name, values, Given(source, scale, zero, axis))


def _origin(maker: Node) -> Tensor:
    """The float tensor behind a QuantizeLinear, and behind pairs before that."""
    source = maker.inputs[0]
    while (dq := edit.producer(source)) is not None and dq.op == "DequantizeLinear":
        before = edit.producer(dq.inputs[0])
        if before is None or before.op != "QuantizeLinear":
            break
        source = before.inputs[0]
    return source


def _names_after(model: Model) -> dict[str, str]:
    """Tensors that get another name as their pair goes: where that pair makes an output, whose name is a promise."""
    renamed = {}
    for _, node in model.walk():
        maker = edit.producer(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if maker is not None and maker.op == "QuantizeLinear" and edit.is_output(model, node.outputs[0]):
            renamed[_origin(maker).name] = node.outputs[0].name
    return renamed


def _raw(node: Node) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Scale, zero point and axis of a Q or DQ whose scale is constant."""
    scale = edit.constant_input(node, 1)
    assert scale is not None
    return scale, edit.constant_input(node, 2), int(node.attrs.get("axis", 1))


def _params(node: Node) -> tuple[QuantParams | None, str]:
    """Scale and zero point of a Q or DQ; None, and the reason, where they are of a kind that is not kept."""
    if edit.constant_input(node, 1) is None:
        raise ModelError(f"the scale of {node.label!r} ({node.op}) is computed at run time", "use --requantize")
    scale, zero, axis = _raw(node)
    if weights.elem_type(node.inputs[1]) not in _FLOATS:
        return None, "its scale is no float"
    scale = np.asarray(scale, np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
        raise ModelError(f"{node.label!r} ({node.op}) has the scale {bad}", "a scale is a finite number above 0")
    name = _type_name(node, zero)
    if name not in _TYPES:
        return None, f"its type is {name}"
    if scale.ndim > 1 or node.attrs.get("block_size", 0):
        return None, "it has a scale per block"
    kind = _TYPES[name]
    if zero is None:
        zero = np.zeros(scale.shape, kind.storage)
    if zero.size not in (1, scale.size):
        raise ModelError(f"{node.label!r} ({node.op}) has {scale.size} scales and {zero.size} zero points")
    zero = np.broadcast_to(zero.reshape(-1).astype(kind.storage), (scale.size,))
    if not isinstance(node.inputs[0], Constant) and (scale == scale.flat[0]).all() and (zero == zero[0]).all():
        scale, zero = scale.reshape(-1)[:1], zero[:1]  # as many equal ones: what keeps a float op a float op
    if scale.size == 1:
        return QuantParams(QuantScheme(kind), scale.reshape(()), zero.reshape(())), ""
    return QuantParams(QuantScheme(kind, granularity=PerChannel(axis)), scale, np.array(zero)), ""


def _fitting(node: Node, params: QuantParams, shape: tuple[int, ...]) -> QuantParams:
    """The params with an axis that counts from the front. Raises ModelError where a weight has no such channels."""
    granularity = params.scheme.granularity
    if not isinstance(granularity, PerChannel):
        return params
    if not -len(shape) <= granularity.axis < len(shape) or shape[granularity.axis] != params.scale.size:
        where = f"a weight {list(shape)} by {params.scale.size} scales along axis {granularity.axis}"
        raise ModelError(f"{node.label!r} ({node.op}) dequantizes {where}")
    axis = granularity.axis % len(shape)
    return QuantParams(replace(params.scheme, granularity=PerChannel(axis)), params.scale, params.zero_point)


def _type_name(node: Node, zero: NDArray[Any] | None) -> str:
    """Name of the quantized type. Raises ModelError where the zero point is of another than the stored values."""
    stored = node.inputs[0] if isinstance(node.inputs[0], Constant) and node.op == "DequantizeLinear" else None
    kinds = [weights.elem_type(t) for t in (node.inputs[2] if zero is not None else None, stored) if t is not None]
    if not kinds and node.op == "DequantizeLinear":
        maker = edit.producer(node.inputs[0])
        assert maker is not None
        return _type_name(maker, edit.constant_input(maker, 2))
    if not kinds:
        kinds = [int(node.attrs.get("output_dtype", 0)) or TensorProto.UINT8]  # QuantizeLinear-21
    names = [TensorProto.DataType.Name(kind).lower() for kind in kinds]
    if len(set(names)) > 1:
        raise ModelError(f"{node.label!r} ({node.op}) reads {names[1]} values with a {names[0]} zero point")
    return names[0]


def _refuse_unequal(q: Node, dq: Node, made: QuantParams | None, read: QuantParams | None) -> None:
    if made is None or read is None or _equal(made, read):
        return
    if made.scheme.dtype is not read.scheme.dtype:
        what = f"quantizes to {made.scheme.dtype.name}, {dq.label!r} reads {read.scheme.dtype.name}"
    else:
        what = f"and {dq.label!r} have different scales or zero points"
    raise ModelError(f"{q.label!r} {what}", "the two halves of a pair must agree; --requantize takes them out")


def _equal(a: QuantParams, b: QuantParams) -> bool:
    return a.scheme == b.scheme and np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)


def _digest(values: NDArray[Any]) -> bytes:
    whole = np.ascontiguousarray(values)
    return hashlib.blake2b(f"{whole.dtype} {whole.shape}".encode() + whole.tobytes(), digest_size=16).digest()


# ---------------------------------------------------------------------- in the target's types


def activation_params(given: QuantParams, scheme: QuantScheme) -> tuple[QuantParams, bool]:
    """The pair of an activation in another scheme, and whether the integers are the same ones but for a shift."""
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
    """The pair of a weight in the target's type, so that the integers are those of the input; else None, and why.

    axis: where the op's output channels are. A scale per tensor is repeated where the scheme has one per channel.
    """
    old, new = given.scheme.dtype, scheme.dtype
    if old.floating or new.floating:
        return None, f"{old.name} weights are not {new.name}"
    granularity = given.scheme.granularity
    if isinstance(granularity, PerChannel) and granularity.axis != axis:
        return None, "its scales are not per output channel"
    offsets = scheme.midpoint - given.zero_point.astype(np.int64)
    if old.qmin + int(offsets.min()) < new.qmin or old.qmax + int(offsets.max()) > new.qmax:
        # The type does not fit as a whole; the integers that occur may.
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
    # Not the symmetric scheme, which gives up the lowest code: it is one the input may use.
    zero = np.full(scale.shape, scheme.midpoint, new.storage)
    return QuantParams(QuantScheme(new, granularity=kind), np.asarray(scale, np.float32), zero), ""


def kept_activations(trained: Trained, planned: Mapping[str, TensorPlan], tensors: Mapping[str, Tensor]) -> Kept:
    """Scale and zero point for every group of which one tensor has a pair; the nearest to the source comes first."""
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
            elif not _equal(found[1], chosen[1]):
                kept.fates.setdefault(found[0], f"it shares the scale of {chosen[0]!r}")
                continue
            if kept.fates.get(found[0]) != "":
                kept.fates[found[0]] = fate
    return kept


def notes(trained: Trained, plan: Plan) -> list[str]:
    """How many scales were kept, how many were completed, and how many were not kept, and why."""
    if not trained:
        return ["--complete: the model holds no Q/DQ pairs, all of it was quantized"]
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
        unused = "its op stays float, or folding changed it" if is_weight else "the plan puts no pair there"
        if fate != "":
            reasons.setdefault(fate or unused, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"{len(names)} trained scales were not kept as they are: {reason}: {_some(names)}")
    return lines


def _some(names: Iterable[str]) -> str:
    first, *rest = (repr(name) for name in names)
    return ", ".join([first, *rest[:2]]) + (f" and {len(rest) - 2} more" if len(rest) > 2 else "")
