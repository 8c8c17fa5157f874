"""Fold constant Mul, Div, Add and Sub into the Conv, ConvTranspose, Gemm or MatMul before or after; merge chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import runtime_patterns

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """A node that computes y = x * scale or y = x + shift, or both (c - x).

    Attributes:
        x: The operand that is not constant.
        scale: The factor, as float64 with the shape of the node's constant; None for 1.
        shift: The summand, as float64 with the shape of the node's constant; None for 0.
        dtype: Type of the node's constant.
    """

    x: Tensor
    scale: Array | None = None
    shift: Array | None = None
    dtype: np.dtype[Any] | None = None

    @property
    def constant(self) -> Array:
        """The scale, or the shift if there is no scale: both have the same shape."""
        constant = self.scale if self.scale is not None else self.shift
        assert constant is not None
        return constant


@dataclass(frozen=True, slots=True)
class FoldAffine:
    """Fold Mul, Div, Add and Sub by a constant into a neighbouring linear op, in subgraphs too.

    The constant is one number or one per channel. After a linear op it is folded into the output channels of the weight
    and the bias. Before one, a factor is folded into the input channels; a summand only if there is no padding. A
    factor after MatMul and Add scales both: (x W + b) s = x (W s) + b s. Two such nodes in a row are merged into one.

    Edits count the removed nodes. Skip reasons are "not folded into <node>: " followed by why, for example: "its output
    is read elsewhere too", "its constant varies along other axes than the channels", "padding is not shifted, so the
    edges would differ", "the result does not fit the weight's own type", or a reason of `linear_ops.weight_refusal`.
    """

    name: str = "fold_affine"

    def run(self, model: Model) -> Change:
        """Fold the nodes."""
        change = Change()
        fused = runtime_patterns(model)
        for graph, node in list(model.walk()):
            affine = None if node in fused else affine_of(node)
            if affine is None:
                continue
            maker, user = edit.producer(affine.x), edit.only_consumer(model, node.outputs[0])
            reasons = []
            if maker is not None and maker not in fused and maker in graph.nodes:
                reasons.append((maker, _fold_back(model, maker, node, affine)))
            folded = any(reason is None for _, reason in reasons)
            if not folded and user is not None and user not in fused and user in graph.nodes:
                reasons.append((user, _fold_on(model, user, node, affine)))
            if any(reason is None for _, reason in reasons):
                change.edits += 1
                continue
            for other, reason in reasons:
                if reason:
                    change.skip(node, f"not folded into {other.label!r}: {reason}")
        return change


def affine_of(node: Node) -> Affine | None:
    """The scale and shift of a Mul, Div, Add or Sub of a tensor and a float constant; None for other nodes."""
    if node.op not in ("Mul", "Div", "Add", "Sub") or node.domain not in STANDARD_DOMAINS or len(node.inputs) != 2:
        return None
    if "axis" in node.attrs or node.attrs.get("broadcast", 0):
        return None  # before opset 7, attributes controlled broadcasting
    where = [i for i in (0, 1) if linear_ops.fixed(node.inputs[i])]
    if len(where) != 1:
        return None
    constant, x = node.inputs[where[0]], node.inputs[1 - where[0]]
    dtype = np.dtype(constant._values.dtype)
    if dtype.name not in linear_ops.FLOATS or weights.size_bytes(constant) > 1 << 20:
        return None
    c = weights.read(constant).astype(np.float64)
    if not c.size or not np.isfinite(c).all():
        return None
    if node.op == "Mul":
        return Affine(x, scale=c, dtype=dtype)
    if node.op == "Add":
        return Affine(x, shift=c, dtype=dtype)
    if node.op == "Sub":
        return Affine(x, shift=-c, dtype=dtype) if where[0] == 1 else Affine(x, -np.ones_like(c), c, dtype)
    return Affine(x, scale=1 / c, dtype=dtype) if where[0] == 1 and c.all() else None


def _fold_back(model: Model, maker: Node, node: Node, affine: Affine) -> str | None:
    """Fold into the node that makes x. Returns None if done, '' if the pattern does not match, else the skip reason."""
    if linear_ops.is_linear(maker):
        if not linear_ops.has_weight(maker) or (maker.op == "MatMul" and affine.shift is not None):
            return ""  # the Add is the MatMul's bias
        if edit.only_consumer(model, affine.x) is not node:
            return "its output is read elsewhere too"
        reason = _along_channels(affine.constant, linear_ops.out_channels(maker), *_out_layout(model, maker))
        flat = _flat(affine)
        reason = reason or linear_ops.fold_after(model, maker, flat.scale, flat.shift)
        if reason is None:
            edit.absorb(model, maker, node)
        return reason
    first = affine_of(maker)
    if first is None or edit.only_consumer(model, affine.x) is not node:
        return ""
    reason = _fold_past_bias(model, maker, node, first, affine)
    return reason if reason != "" else _merge(model, maker, node, first, affine)


def _fold_on(model: Model, user: Node, node: Node, affine: Affine) -> str | None:
    """Fold into the only node that reads the result. Returns as `_fold_back` does."""
    if affine.scale is not None and affine.shift is not None:
        return ""
    if not linear_ops.is_linear(user):
        return _fold_past_add(model, user, node, affine)
    if user.op == "MatMul" and affine.shift is not None:
        return ""
    reason = _into_inputs(model, user, node.outputs[0], affine)
    if reason is None:
        user.inputs[0] = affine.x
        edit.remove(model, [node])
    return reason


def _into_inputs(model: Model, user: Node, read: Tensor, affine: Affine) -> str | None:
    """Fold into the input channels of a linear op whose data input is `read`; the caller rewires that input."""
    if user.inputs[0] is not read or not linear_ops.has_weight(user):
        return ""
    rank, axis = _in_layout(user)
    channels = linear_ops.in_channels(user)
    reason = _along_channels(affine.constant, channels, rank, axis)
    if reason is None and affine.constant.size > 1:
        shape = model.shape(affine.x)
        if shape is None or len(shape) < -axis or shape[axis] != channels:
            reason = "its input is not known to have as many channels"
    flat = _flat(affine)
    return reason or linear_ops.fold_before(model, user, flat.scale, flat.shift)


def _fold_past_add(model: Model, add: Node, node: Node, affine: Affine) -> str | None:
    """Fold s into the linear op after x * s + b = s * (x + b / s); a scale may pass padding."""
    second = affine_of(add) if add.op in ("Add", "Sub") else None
    user = edit.only_consumer(model, add.outputs[0])
    if second is None or second.shift is None or second.scale is not None or user is None or affine.scale is None:
        return ""
    if not linear_ops.is_linear(user) or edit.graph_of(model, user) is not edit.graph_of(model, node):
        return ""
    if second.shift.size > 1 and affine.scale.size > 1 and second.shift.shape != affine.scale.shape:
        return ""
    with np.errstate(all="ignore"):  # checked below
        moved = (second.shift / affine.scale).astype(second.dtype)
    if not np.isfinite(moved.astype(np.float64)).all() or not affine.scale.all():
        return "the constant added after it cannot be divided by it"
    reason = _into_inputs(model, user, add.outputs[0], affine)
    if reason is None:
        add.inputs.clear()
        add.inputs.extend([affine.x, edit.add_constant(model, add.label, "unscaled", moved)])
        add.op = "Add"
        edit.rename(model, add, "unscaled")
        edit.remove(model, [node])
    return reason


def _fold_past_bias(model: Model, add: Node, node: Node, first: Affine, affine: Affine) -> str | None:
    """Fold s into both the MatMul and the Add that is its bias: (x W + b) s + t = x (W s) + (b s + t)."""
    product = edit.producer(first.x)
    scales = [c for c in (first.scale, affine.scale) if c is not None]
    if first.shift is None or not scales or product is None:
        return ""
    if product.op != "MatMul" or not linear_ops.is_linear(product) or not linear_ops.has_weight(product):
        return ""
    if edit.only_consumer(model, first.x) is not add or edit.graph_of(model, product) is not edit.graph_of(model, add):
        return ""
    with np.errstate(all="ignore"):  # checked below
        scale = np.asarray(np.prod(np.broadcast_arrays(*scales), axis=0))
        passed = first.shift if affine.scale is None else first.shift * affine.scale
        moved = np.asarray(passed if affine.shift is None else passed + affine.shift)
        stored = moved.astype(first.dtype)
    reason = _along_channels(scale, linear_ops.out_channels(product), *_out_layout(model, product))
    if reason is not None:
        return reason
    if moved.size > max(first.shift.size, affine.constant.size):
        return "the merged constant would be larger than both"
    if not np.isfinite(stored.astype(np.float64)).all():
        return "the merged constant would not fit its type"
    reason = linear_ops.fold_after(model, product, scale.reshape(-1), None)
    if reason is None:
        add.inputs.clear()
        add.inputs.extend([first.x, edit.add_constant(model, add.label, "scaled", stored)])
        add.op = "Add"
        edit.rename(model, product, "scaled")
        edit.absorb(model, add, node)
    return reason


def _flat(affine: Affine) -> Affine:
    """The same with constants of shape [C] or [1]."""
    flat = [None if c is None else c.reshape(-1) for c in (affine.scale, affine.shift)]
    return Affine(affine.x, flat[0], flat[1], affine.dtype)


def _out_layout(model: Model, node: Node) -> tuple[int, int]:
    """(least rank of a linear op's output, axis of its channels counted from the end)."""
    rank = len(node.inputs[1].shape)
    if node.op == "MatMul":
        x = model.shape(node.inputs[0])
        return (rank - 1 if x is None else max(len(x), rank) - (len(x) == 1)), -1
    return rank, {"Gemm": -1}.get(node.op, 1 - rank)


def _in_layout(node: Node) -> tuple[int, int]:
    """(least rank of a linear op's input, axis of its channels counted from the end)."""
    if node.op == "MatMul":
        return 1, -1
    if node.op == "Gemm":
        return 2, -2 if node.attrs.get("transA", 0) else -1
    rank = len(node.inputs[1].shape)
    return rank, 1 - rank


def _along_channels(constant: Array, channels: int, rank: int, axis: int) -> str | None:
    """Skip reason if a constant is neither one number nor one number per channel; None if it is."""
    if constant.ndim > rank:
        return "its constant may add dimensions"
    if constant.size == 1:
        return None
    if constant.size != channels or -axis > constant.ndim or constant.shape[axis] != channels:
        return "its constant varies along other axes than the channels"
    return None


def _merge(model: Model, first: Node, second: Node, one: Affine, two: Affine) -> str | None:
    """Merge two nodes: x * a * b -> x * (a b), x + a + b -> x + (a + b). Returns as `_fold_back` does."""
    if (one.scale is None) != (two.scale is None) or (one.shift is None) != (two.shift is None):
        return ""
    if one.scale is not None and one.shift is not None:
        return ""
    if one.dtype != two.dtype or one.dtype is None:
        return ""
    a, b = one.constant, two.constant
    both = np.broadcast_shapes(a.shape, b.shape)
    if int(np.prod(both)) > max(a.size, b.size):
        return "the merged constant would be larger than both"
    with np.errstate(over="ignore", under="ignore"):
        merged = np.asarray(a * b if one.scale is not None else a + b).astype(one.dtype)
    size = np.abs(merged.astype(np.float64))
    tiny = np.finfo(one.dtype if one.dtype.name != "bfloat16" else np.float32).tiny
    underflow = one.scale is not None and bool(((size < tiny) & (np.broadcast_to(a * b, both) != 0)).any())
    if not np.isfinite(size).all() or underflow:
        return "the merged constant would not fit its type"
    second.inputs.clear()
    second.inputs.extend([one.x, edit.add_constant(model, second.label, "merged", merged)])
    second.op = "Mul" if one.scale is not None else "Add"
    edit.remove(model, [first])
    return None
