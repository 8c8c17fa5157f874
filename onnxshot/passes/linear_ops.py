"""Fold a scale and a shift into the weight and bias of a Conv, ConvTranspose, Gemm or MatMul.

Shared by the passes that fold BatchNormalization and constant Mul and Add. The folding functions return None if they
folded, else the skip reason, with nothing changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, channel_axis
from onnxshot.maths.affine_folding import fold_bias, pass_shift, scale_axis

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = ("float16", "bfloat16", "float32", "float64")
_LAZY_BYTES = 1 << 24  # weights above this size are computed each time they are read, and never kept in memory
_TOO_NARROW = "the result does not fit the weight's own type"

Array = NDArray[Any]


def is_linear(node: Node | None) -> bool:
    """Whether the node is a Conv, ConvTranspose, Gemm or MatMul of the standard domain."""
    return node is not None and node.op in LINEAR and node.domain in STANDARD_DOMAINS


def fixed(tensor: Tensor) -> bool:
    """Whether the tensor is a constant that callers cannot override at run time."""
    return isinstance(tensor, Constant) and not getattr(tensor, "overridable", False)


def has_weight(node: Node) -> bool:
    """Whether the second input of a linear op is a constant of rank 2 or more."""
    return fixed(node.inputs[1]) and len(node.inputs[1].shape) >= 2


def weight_refusal(model: Model, node: Node) -> str | None:
    """Skip reason if the weight of a linear op must not be changed; None if it may be.

    The weight must be a floating-point constant that no other node reads and that is no output of the model.
    """
    weight = node.inputs[1]
    if not has_weight(node):
        return "its weight is not a constant matrix"
    if weights.read(weight).dtype.name not in FLOATS:
        return "its weight is not floating point"
    if edit.is_output(model, weight):
        return f"its weight {weight.name!r} is an output of the model"
    others = [n for n in edit.consumers(weight) if n is not node]
    if others or len(weight.outputs) > 1:
        return f"its weight {weight.name!r} is shared with {(others or [node])[0].label!r}"
    return None


def bias_refusal(node: Node) -> str | None:
    """Skip reason if nothing can be added to the bias of a linear op; None if it can."""
    if node.op == "MatMul":
        return "MatMul has no bias"
    if has_bias(node) and not fixed(node.inputs[2]):
        return "its bias is not constant"
    return None


def has_bias(node: Node) -> bool:
    """Whether a linear op has its optional third input."""
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def out_channels(node: Node) -> int:
    """Number of output channels of a linear op with a constant weight."""
    w = node.inputs[1]
    return int(w.shape[_out_axis(node)]) * (_groups(node) if node.op == "ConvTranspose" else 1)


def in_channels(node: Node) -> int:
    """Number of input channels of a linear op with a constant weight."""
    w = node.inputs[1]
    return int(w.shape[_in_axis(node)]) * (_groups(node) if node.op == "Conv" else 1)


def fold_after(model: Model, node: Node, scale: Array | None, shift: Array | None) -> str | None:
    """Change a linear op with output y to compute scale * y + shift.

    Args:
        model: The model.
        node: The linear op. Its weight may be shared with other nodes if there is no scale.
        scale: Factor [O] or [1], where O is the number of output channels; None for 1.
        shift: Summand [O] or [1]; None for 0.

    Returns:
        None if done, else the skip reason.
    """
    reason = _refusal(model, node, scale=scale is not None, bias=shift is not None or has_bias(node))
    if reason is not None:
        return reason
    factor = np.ones(1) if scale is None else scale
    bias = fold_bias(_bias(node), factor, np.zeros(1) if shift is None else shift, out_channels(node))
    if scale is not None:
        reason = _scale_weight(model, node, scale, _out_axis(node), bias)
    elif not _fits(bias, node.inputs[1]):
        reason = _TOO_NARROW
    if reason is None and (shift is not None or has_bias(node)):
        _set_bias(model, node, bias)
    return reason


def fold_before(model: Model, node: Node, scale: Array | None, shift: Array | None) -> str | None:
    """Change a linear op that reads x * scale, or x + shift, to read x and compute the same.

    Args:
        model: The model.
        node: The linear op.
        scale: Factor [I] or [1], where I is the number of input channels; None for 1.
        shift: Summand [I] or [1], if there is no scale. It cannot be folded into an op with padding.

    Returns:
        None if done, else the skip reason.
    """
    reason = _refusal(model, node, scale=scale is not None, bias=shift is not None)
    if reason is not None:
        return reason
    if scale is not None:
        return _scale_weight(model, node, scale, _in_axis(node))
    assert shift is not None
    if not _sees_no_padding(node):
        return "padding is not shifted, so the edges would differ"
    extra = pass_shift(weights.read(node.inputs[1]), shift, _in_axis(node), _out_axis(node), _groups(node))
    if node.op == "Gemm":
        extra = extra * float(node.attrs.get("alpha", 1.0))
    bias = fold_bias(_bias(node), np.ones(1), extra, out_channels(node))
    if not _fits(bias, node.inputs[1]):
        return _TOO_NARROW
    _set_bias(model, node, bias)
    return None


def _refusal(model: Model, node: Node, *, scale: bool, bias: bool) -> str | None:
    """Skip reason if the weight cannot be scaled, or the bias not be changed, where that is needed."""
    if not has_weight(node):
        return "its weight is not a constant matrix"
    reason = weight_refusal(model, node) if scale else None
    return bias_refusal(node) if reason is None and bias else reason


def _scale_weight(model: Model, node: Node, scale: Array, axis: int, bias: Array | None = None) -> str | None:
    """Multiply the weight by the scale along an axis; the skip reason if it or the new bias overflows its type."""
    source, groups = Constant(node.inputs[1].name, node.inputs[1]._values), _groups(node)

    def compute() -> Array:
        w: Array = weights.read(source)
        with np.errstate(over="ignore"):  # checked below
            return scale_axis(w, scale, axis, groups).astype(w.dtype)

    values = compute()
    if not np.isfinite(values).all() or not (bias is None or _fits(bias, source)):
        return _TOO_NARROW
    lazy = weights.ComputedValues(tuple(values.shape), values.dtype, compute) if values.nbytes > _LAZY_BYTES else values
    node.inputs[1] = _renewed(model, node.inputs[1], lazy)
    return None


def _fits(bias: Array, weight: Constant) -> bool:
    """Whether the bias is finite in the weight's type."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(bias.astype(weight._values.dtype).astype(np.float64)).all())


def _sees_no_padding(node: Node) -> bool:
    """Whether the op computes without padding."""
    if node.op in ("Gemm", "MatMul"):
        return True
    auto_pad = node.attrs.get("auto_pad", b"NOTSET")
    return node.op == "Conv" and auto_pad in (b"NOTSET", b"VALID", b"") and not any(node.attrs.get("pads", ()))


def _out_axis(node: Node) -> int:
    """Axis of the output channels in the weight; within a group for ConvTranspose."""
    axis = channel_axis(node, 1, len(node.inputs[1].shape))
    assert axis is not None, node.op
    return axis


def _in_axis(node: Node) -> int:
    """Axis of the input channels in the weight; within a group for Conv."""
    rank = len(node.inputs[1].shape)
    return {"Conv": 1, "ConvTranspose": 0, "MatMul": rank - 2}.get(node.op, 1 - _out_axis(node))


def _groups(node: Node) -> int:
    """Number of groups of a Conv or ConvTranspose; 1 for other ops."""
    return int(node.attrs.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1


def _bias(node: Node) -> Array | None:
    """The bias, multiplied by `beta` of a Gemm; None if there is none."""
    if not has_bias(node):
        return None
    bias: Array = weights.read(node.inputs[2])
    return bias.astype(np.float64) * float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else bias


def _set_bias(model: Model, node: Node, bias: Array) -> None:
    """Replace or add the bias, in the weight's type."""
    values = bias.astype(node.inputs[1]._values.dtype)
    if node.op == "Gemm":
        node.attrs.pop("beta", None)  # the new bias includes it
    if has_bias(node):
        node.inputs[2] = _renewed(model, node.inputs[2], values)
        return
    constant = edit.add_constant(model, node.label, "bias", values)
    if len(node.inputs) > 2:
        node.inputs[2] = constant
    else:
        node.inputs.append(constant)


def _renewed(model: Model, old: Constant, values: Array | weights.ComputedValues) -> Constant:
    """A constant to replace `old`, under its name if nothing else uses it."""
    kept = edit.is_output(model, old) or any(old is p for g in model.graphs() for p in g.annotation_params)
    if len(old.outputs) == 1 and not kept:
        made = Constant(old.name, values)
    else:
        made = edit.add_constant(model, old.name, "folded", values)
    made.stored_as = getattr(old, "stored_as", 0)
    return made
