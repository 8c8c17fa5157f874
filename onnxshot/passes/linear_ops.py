"""Fold a scale and a shift into the Conv, ConvTranspose, Gemm or MatMul before or behind them; what both folders share.

Every function returns the reason where it refuses, having changed nothing, and None where it folded.
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
_LAZY_BYTES = 1 << 24  # larger weights are computed again each time they are read, and never held
_TOO_NARROW = "the result does not fit the weight's own type"

Array = NDArray[Any]


def is_linear(node: Node | None) -> bool:
    """True for an op whose weight can take a scale."""
    return node is not None and node.op in LINEAR and node.domain in STANDARD_DOMAINS


def fixed(tensor: Tensor) -> bool:
    """True for a constant that no caller may replace at run time."""
    return isinstance(tensor, Constant) and not getattr(tensor, "overridable", False)


def has_weight(node: Node) -> bool:
    """True where the second input of a linear op is a constant matrix (or more dimensions)."""
    return fixed(node.inputs[1]) and len(node.inputs[1].shape) >= 2


def weight_refusal(model: Model, node: Node) -> str | None:
    """Why the weight of a linear op may not be changed; None where it may."""
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
    """Why nothing can be added to the bias of a linear op; None where it can."""
    if node.op == "MatMul":
        return "MatMul has no bias"
    if has_bias(node) and not fixed(node.inputs[2]):
        return "its bias is not constant"
    return None


def has_bias(node: Node) -> bool:
    """True where a Conv, ConvTranspose or Gemm has its third input."""
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
    """Let a linear op give scale * y + shift. scale, shift [O] or [1]; a weight that is only shifted may be shared."""
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
    """Let a linear op read x where it read x * scale or x + shift. scale, shift [I] or [1]; one of the two."""
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
    if not has_weight(node):
        return "its weight is not a constant matrix"
    reason = weight_refusal(model, node) if scale else None
    return bias_refusal(node) if reason is None and bias else reason


def _scale_weight(model: Model, node: Node, scale: Array, axis: int, bias: Array | None = None) -> str | None:
    """Multiply the weight by the scale along its axis, unless that, or the new bias, does not fit its type."""
    source, groups = Constant(node.inputs[1].name, node.inputs[1]._values), _groups(node)

    def compute() -> Array:
        w: Array = weights.read(source)
        with np.errstate(over="ignore"):  # looked for below
            return scale_axis(w, scale, axis, groups).astype(w.dtype)

    values = compute()
    if not np.isfinite(values).all() or not (bias is None or _fits(bias, source)):
        return _TOO_NARROW
    lazy = weights.ComputedValues(tuple(values.shape), values.dtype, compute) if values.nbytes > _LAZY_BYTES else values
    node.inputs[1] = _renewed(model, node.inputs[1], lazy)
    return None


def _fits(bias: Array, weight: Constant) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(bias.astype(weight._values.dtype).astype(np.float64)).all())


def _sees_no_padding(node: Node) -> bool:
    if node.op in ("Gemm", "MatMul"):
        return True
    auto_pad = node.attrs.get("auto_pad", b"NOTSET")
    return node.op == "Conv" and auto_pad in (b"NOTSET", b"VALID", b"") and not any(node.attrs.get("pads", ()))


def _out_axis(node: Node) -> int:
    axis = channel_axis(node, 1, len(node.inputs[1].shape))
    assert axis is not None, node.op
    return axis


def _in_axis(node: Node) -> int:
    rank = len(node.inputs[1].shape)
    return {"Conv": 1, "ConvTranspose": 0, "MatMul": rank - 2}.get(node.op, 1 - _out_axis(node))


def _groups(node: Node) -> int:
    return int(node.attrs.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1


def _bias(node: Node) -> Array | None:
    """The bias, with Gemm's beta in it."""
    if not has_bias(node):
        return None
    bias: Array = weights.read(node.inputs[2])
    return bias.astype(np.float64) * float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else bias


def _set_bias(model: Model, node: Node, bias: Array) -> None:
    values = bias.astype(node.inputs[1]._values.dtype)
    if node.op == "Gemm":
        node.attrs.pop("beta", None)  # it is in the bias now
    if has_bias(node):
        node.inputs[2] = _renewed(model, node.inputs[2], values)
        return
    constant = edit.add_constant(model, node.label, "bias", values)
    if len(node.inputs) > 2:
        node.inputs[2] = constant
    else:
        node.inputs.append(constant)


def _renewed(model: Model, old: Constant, values: Array | weights.ComputedValues) -> Constant:
    """A constant in place of `old`: under its name where nobody else uses that."""
    kept = edit.is_output(model, old) or any(old is p for g in model.graphs() for p in g.annotation_params)
    if len(old.outputs) == 1 and not kept:
        made = Constant(old.name, values)
    else:
        made = edit.add_constant(model, old.name, "folded", values)
    made.stored_as = getattr(old, "stored_as", 0)
    return made
