"""Read the scales and zero points of a quantized input model from its Q/DQ pairs.

"Trained" scales are those that the input came with, for example from quantization-aware training. With `--complete`,
they are kept, and only what has no scale yet is quantized. keep_trained_scales.py converts them to the target's types.
"""

from __future__ import annotations

import hashlib
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
)
from onnxshot.maths.dequantize_stored import dequantize_channels

_TYPES = {t.name: t for t in (UINT8, INT8, UINT16, INT16, UINT4, INT4, FLOAT8E4M3FN)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CUTS = ("Relu", "Clip")  # Q before or after them gives the same integers, as all three are monotone


@dataclass(frozen=True, slots=True)
class Given:
    """A weight that is stored as integers in the input model.

    Attributes:
        values: the integers.
        scale: the scale: a scalar, or a vector [C] along `axis`.
        zero: the zero point, shaped like the scale; None means 0.
        axis: channel axis of a vector scale.
    """

    values: Constant
    scale: Constant
    zero: Constant | None
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The scales and zero points of a quantized input model. False if it has none.

    Attributes:
        activations: tensor name -> scale and zero point.
        weights: weight name -> scale and zero point, with the channel axis if they are per channel.
        refused: tensor name -> reason why no target can keep its scale.
        stored: weight name -> its integers, for weights that are stored as integers and not as floats before a pair.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Given] = field(default_factory=dict)
    _stored: dict[bytes, str] = field(default_factory=dict)  # digest of the float values, flattened -> weight name
    _contents: dict[bytes, tuple[str, QuantParams]] = field(default_factory=dict)
    _known: dict[Constant, tuple[str, QuantParams] | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.activations or self.weights or self.refused)

    def names(self) -> list[str]:
        """Names of all tensors that have a Q/DQ pair, without duplicates."""
        return list(dict.fromkeys((*self.activations, *self.weights, *self.refused)))

    def of(self, tensor: Tensor) -> tuple[str, QuantParams] | None:
        """(name, scale) of the tensor, or of the one that it moves or clips the values of; None without one."""
        while tensor.name not in self.activations:
            maker = edit.producer(tensor)
            if maker is None or not (op_of(maker).keeps_range or maker.op in _CUTS):
                return None
            tensor = maker.inputs[0]
        return tensor.name, self.activations[tensor.name]

    def of_weight(self, weight: Constant) -> tuple[str, QuantParams] | None:
        """(name in the input, scale) of a weight. It is found by its values, as folding may rename or transpose it."""
        if weight not in self._known:
            self._known[weight] = self._contents.get(_digest(weights.read(weight))) if self._contents else None
        return self._known[weight]

    def stored_as(self, values: NDArray[Any]) -> str | None:
        """Name of the integer weight of the input that represents these float values, in any shape, or None."""
        return self._stored.get(_digest(values.reshape(-1)))

    def add_stored(self, name: str, values: NDArray[Any], given: Given) -> None:
        """Record the integers of a weight under its float values, and under their transpose if it is a matrix."""
        self.stored[name] = given
        for form in (values, values.T) if values.ndim == 2 else (values,):
            self._stored.setdefault(_digest(form.reshape(-1)), name)

    def add_weight(self, name: str, values: NDArray[Any], params: QuantParams) -> None:
        """Record the scale of a weight, and of its transpose if it is a matrix."""
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
    """Read all Q/DQ pairs of a model. Constants must be folded already.

    Args:
        model: the quantized model, before its pairs are removed.

    Raises:
        ModelError: a scale is not a finite number above 0, or is computed at run time, or Q and DQ of a pair differ.
    """
    found = Trained()
    names = _names_after(model)
    for _, node in model.walk():
        if node.op != "DequantizeLinear":
            continue
        source, stored = node.inputs[0], isinstance(node.inputs[0], Constant)
        maker = edit.producer(source)
        if not stored and (maker is None or maker.op != "QuantizeLinear"):
            continue  # an integer operator produces it, which strip_qdq reports
        if stored and weights.elem_type(source) == TensorProto.INT32:
            continue  # a bias: its scale follows from those of input and weight
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
        elif not same_params(found.activations.setdefault(name, params), params):
            found.refused[name] = "it has several pairs, of which the first is kept"
    return found


def _remember(found: Trained, node: Node, source: Constant, values: NDArray[Any]) -> None:
    """Record the integers of a weight before its DequantizeLinear is removed."""
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if isinstance(scale, Constant) and (zero is None or isinstance(zero, Constant)):
        axis = int(node.attrs.get("axis", 1)) % max(values.ndim, 1)
        found.add_stored(source.name, values, Given(source, scale, zero, axis))


def _origin(maker: Node) -> Tensor:
    """The float tensor that a QuantizeLinear reads, before all earlier Q/DQ pairs."""
    source = maker.inputs[0]
    while (dq := edit.producer(source)) is not None and dq.op == "DequantizeLinear":
        before = edit.producer(dq.inputs[0])
        if before is None or before.op != "QuantizeLinear":
            break
        source = before.inputs[0]
    return source


def _names_after(model: Model) -> dict[str, str]:
    """Tensor -> its name once the pair is removed: if the pair produces a graph output, the output name stays."""
    renamed = {}
    for _, node in model.walk():
        maker = edit.producer(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if maker is not None and maker.op == "QuantizeLinear" and edit.is_output(model, node.outputs[0]):
            renamed[_origin(maker).name] = node.outputs[0].name
    return renamed


def _raw(node: Node) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Scale, zero point and axis of a Q or DQ with a constant scale."""
    scale = edit.constant_input(node, 1)
    assert scale is not None
    return scale, edit.constant_input(node, 2), int(node.attrs.get("axis", 1))


def _params(node: Node) -> tuple[QuantParams | None, str]:
    """(scale and zero point of a Q or DQ, ""), or (None, reason) if they are of a kind that is not kept."""
    if edit.constant_input(node, 1) is None:
        raise ModelError(f"the scale of {node.label!r} ({node.op}) is computed at run time", "use [[requantize=True]]")
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
        scale, zero = scale.reshape(-1)[:1], zero[:1]  # equal scales for all channels count as one scale
    if scale.size == 1:
        return QuantParams(QuantScheme(kind), scale.reshape(()), zero.reshape(())), ""
    return QuantParams(QuantScheme(kind, granularity=PerChannel(axis)), scale, np.array(zero)), ""


def _fitting(node: Node, params: QuantParams, shape: tuple[int, ...]) -> QuantParams:
    """The params with a non-negative axis. Raises ModelError if the scale does not fit the weight's shape."""
    granularity = params.scheme.granularity
    if not isinstance(granularity, PerChannel):
        return params
    if not -len(shape) <= granularity.axis < len(shape) or shape[granularity.axis] != params.scale.size:
        where = f"a weight {list(shape)} by {params.scale.size} scales along axis {granularity.axis}"
        raise ModelError(f"{node.label!r} ({node.op}) dequantizes {where}")
    axis = granularity.axis % len(shape)
    return QuantParams(replace(params.scheme, granularity=PerChannel(axis)), params.scale, params.zero_point)


def _type_name(node: Node, zero: NDArray[Any] | None) -> str:
    """Name of the quantized type. Raises ModelError if zero point and stored values have different types."""
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
    """Raise ModelError if Q and DQ of a pair have different types, scales or zero points."""
    if made is None or read is None or same_params(made, read):
        return
    if made.scheme.dtype is not read.scheme.dtype:
        what = f"quantizes to {made.scheme.dtype.name}, {dq.label!r} reads {read.scheme.dtype.name}"
    else:
        what = f"and {dq.label!r} have different scales or zero points"
    raise ModelError(f"{q.label!r} {what}", "the two halves of a pair must agree; [[requantize=True]] takes them out")


def same_params(a: QuantParams, b: QuantParams) -> bool:
    """Whether two tensors have equal scheme, scale and zero point."""
    return a.scheme == b.scheme and np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)


def _digest(values: NDArray[Any]) -> bytes:
    """Hash of dtype, shape and values."""
    whole = np.ascontiguousarray(values)
    return hashlib.blake2b(f"{whole.dtype} {whole.shape}".encode() + whole.tobytes(), digest_size=16).digest()
