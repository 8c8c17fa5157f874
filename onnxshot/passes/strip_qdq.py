"""Remove Q/DQ pairs: x -> Q -> DQ -> op becomes x -> op, and int8 weight -> DQ -> op becomes float weight -> op.

The result is the float graph, with weights that keep their quantization error. A pair whose zero point is the lowest
integer also clips values below 0, and quantizers then leave out the Relu or Clip before it. There, Clip replaces the
pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot import memory
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import op_of
from onnxshot.graph.weight_pieces import reads_rows, rows
from onnxshot.maths.dequantize_stored import dequantize_blocks, dequantize_channels, fits_blocks
from onnxshot.passes.base import Change
from onnxshot.passes.quantized_shapes import rename_moved, wants_shape

Restored = dict[tuple[object, ...], Constant]
"""(integers, scale, zero point ...) -> float weight, so that integers which several nodes read give one weight."""

_LAZY_SHARE = 16  # of a part's bytes
PAIR = ("QuantizeLinear", "DequantizeLinear")
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
# Their results are >= 0 if all inputs are (_SUMS), or if the first input is (_MEANS).
_SUMS = ("Add", "Mul", "Concat")
_MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class StripQdq:
    """Remove Q/DQ pairs on activations and dequantize stored weights (DequantizeLinear-21), in subgraphs too.

    Q and DQ with different scales or zero points are replaced by the Mul and Add that they compute.

    Edits count the removed DequantizeLinear nodes. Skipped: a scale that is computed or does not fit; a pair whose
    input and output are both graph inputs or outputs; integers that an integer operator produces.

    Attributes:
        restored: float weights made so far, shared with `IntegerOpsToFloat`.
    """

    restored: Restored = field(default_factory=dict)
    name: str = "strip_qdq"

    def run(self, model: Model) -> Change:
        """Remove the pairs."""
        change = Change()
        cut: dict[tuple[Tensor, bytes], Tensor] = {}
        _float_shapes(model)
        for _, node in list(model.walk()):
            if node.op != "DequantizeLinear":
                continue
            source = node.inputs[0]
            maker = edit.producer(source)
            if isinstance(source, Constant):
                restored = restore(model, node, self.restored)
                if restored is None:
                    change.skip(node, "its scale is not constant, or does not fit")
                    continue
                edit.replace_uses(model, node.outputs[0], restored)
                edit.remove(model, [node])
            elif maker is not None and maker.op == "QuantizeLinear":
                if not _are_a_pair(maker, node):
                    if _compute(model, maker, node):
                        change.edits += 1
                    else:
                        change.skip(node, "its scale differs from that of the Q before it, and is not constant")
                    continue
                limit = _limit(maker)
                if limit is not None and _may_lack_relu(maker.inputs[0]):
                    _clip(model, node, maker.inputs[0], limit, cut)
                elif not edit.bypass(model, node, maker.inputs[0]):
                    change.skip(node, "its input and its output are both inputs or outputs of the model")
                    continue
            else:
                change.skip(node, "an integer operator makes its input")
                continue
            change.edits += 1
        edit.remove_unused(model)
        if cut or change.edits:
            edit.toposort(model)
        return change


def _float_shapes(model: Model) -> None:
    """Let nodes that use only the shape of a quantized tensor read the float tensor before Q."""
    for _, q in model.walk():
        for user in edit.consumers(q.outputs[0]) if q.op == "QuantizeLinear" else ():
            if user.inputs[0] is q.outputs[0] and wants_shape(model, user):
                user.inputs[0] = q.inputs[0]
                rename_moved(model, user)


def _are_a_pair(q: Node, dq: Node) -> bool:
    """Whether DQ has the scale and zero point of Q. Otherwise the two compute an affine function."""
    for slot in (1, 2):
        ours, theirs = edit.constant_input(q, slot), edit.constant_input(dq, slot)
        if ours is None or theirs is None:
            continue
        if ours.size != theirs.size and 1 not in (ours.size, theirs.size):
            return False
        if (ours.reshape(-1) != theirs.reshape(-1)).any():  # one value for all channels equals a vector of equal values
            return False
    return True


def _compute(model: Model, q: Node, dq: Node) -> bool:
    """Replace Q, DQ by Mul, Add: (x / scale_q + zero_q - zero_dq) * scale_dq. False if a scale or rank is unknown."""
    x, rank = q.inputs[0], len(model.shape(q.inputs[0]) or ())
    convs = [node for node in edit.consumers(dq.outputs[0]) if node.op == "Conv"]
    if not rank and convs:  # the rank of a weight is known before shape inference
        w = edit.producer(convs[0].inputs[1])
        rank = len((convs[0].inputs[1] if w is None else w.inputs[0]).shape or ())
    ours, theirs = (edit.constant_input(node, 1) for node in (q, dq))
    if ours is None or theirs is None or (max(ours.size, theirs.size) > 1 and not rank):
        return False
    ratio = theirs.astype(np.float64) / ours
    zeros = [edit.constant_input(node, 2) for node in (q, dq)]
    mine, its = (np.zeros(()) if zero is None else zero.astype(np.float64) for zero in zeros)
    shift = (mine - its) * theirs
    axis = int(q.attrs.get("axis", 1)) % max(rank, 1)
    for op, values in (("Mul", ratio), ("Add", shift)):
        flat = values.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(max(rank, 1))])
        constant = edit.add_constant(model, x.name, "affine", flat)
        x = edit.add_node(model, op, [x, constant], base=q.label, suffix="affine").outputs[0]
    edit.replace_uses(model, dq.outputs[0], x)
    edit.remove(model, [dq])
    return True


def _limit(q: Node) -> NDArray[np.float32] | None:
    """The largest value that a pair represents, if the smallest is 0; else None."""
    scale, zero = edit.constant_input(q, 1), edit.constant_input(q, 2)
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    zero = np.zeros((), np.uint8) if zero is None else zero.reshape(())
    if zero.dtype.kind not in "iu" or q.attrs.get("output_dtype", 0):
        return None
    codes = np.iinfo(zero.dtype)
    return scale.reshape(()) * np.float32(codes.max - codes.min) if int(zero) == codes.min else None


def _may_lack_relu(tensor: Tensor) -> bool:
    """Whether a quantizer may have left out a Relu: not on graph inputs, after means, or on values >= 0."""
    maker = edit.producer(tensor)
    return maker is not None and maker.op not in _MEANS and not _never_negative(tensor)


def _never_negative(tensor: Tensor) -> bool:
    """Whether the operators that produce the tensor guarantee values >= 0."""
    stack, seen = [tensor], set()
    while stack:
        found = stack.pop()
        if found in seen:
            continue
        seen.add(found)
        maker = edit.producer(found)
        if maker is None or (maker.op == "Clip" and not edit.clip_limits(maker)[0] >= 0):
            return False
        if maker.op in _SUMS:
            stack += maker.inputs
        elif maker.op in _MEANS or op_of(maker).keeps_range:
            stack.append(maker.inputs[0])
        elif maker.op not in ("Clip", *_NEVER_NEGATIVE):
            return False
    return True


def _clip(
    model: Model, dq: Node, source: Tensor, limit: NDArray[np.float32], cut: dict[tuple[Tensor, bytes], Tensor]
) -> None:
    """Replace the pair by Clip(0, limit). Equal pairs of one tensor share one Clip."""
    out = dq.outputs[0]
    known = cut.get((source, limit.tobytes()))
    if known is not None and not edit.is_output(model, out):
        edit.replace_uses(model, out, known)
        edit.remove(model, [dq])
        return
    graph = edit.graph_of(model, dq)
    edit.remove(model, [dq])
    inputs, attrs = [source], {"min": 0.0, "max": float(limit)}  # Clip-6
    if model.opset >= 11:
        ends = {"low": np.zeros((), np.float32), "high": limit}
        inputs, attrs = [source, *(edit.add_constant(model, source.name, k, v) for k, v in ends.items())], {}
    edit.add_node(model, "Clip", inputs, base=source.name, suffix="cut", outputs=[out], attrs=attrs, graph=graph)
    cut[source, limit.tobytes()] = out


def restore(model: Model, node: Node, known: Restored | None = None) -> Constant | None:
    """Compute the float weight that a DequantizeLinear makes of stored integers: (q - zero_point) * scale.

    Args:
        model: the model, to which the weight is added.
        node: a DequantizeLinear of a constant.
        known: float weights made so far. An equal one is returned, and a new one is added.

    Returns:
        The float weight; None if the scale is not constant, not float32 or float16, or does not fit.
    """
    stored, scale = node.inputs[0], edit.constant_input(node, 1)
    zero, block = edit.constant_input(node, 2), int(node.attrs.get("block_size", 0))
    if scale is None or (scale.ndim > 1 and not block) or weights.elem_type(node.inputs[1]) not in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    ):
        return None
    axis = int(node.attrs.get("axis", 1))
    key = (stored, *values_key(scale, zero), axis if scale.size > 1 else None, block)
    if known is not None and key in known:
        return known[key]
    shape = tuple(stored.shape)
    if block:  # DequantizeLinear-21
        shapes = [values.shape for values in (scale, zero) if values is not None]
        if not all(fits_blocks(shape, one, axis, block) for one in shapes):
            return None
    elif not fits(np.broadcast_to(np.int8(0), shape), scale, zero, axis):
        return None
    source = Constant(stored.name, stored._values)

    def real() -> NDArray[Any]:
        q = weights.read(source)
        if block:
            return dequantize_blocks(q, scale, 0.0 if zero is None else zero, axis, block)
        return dequantize_channels(q, scale, zero, axis)

    def real_rows(start: int, stop: int) -> NDArray[Any]:
        first = axis % len(shape) == 0
        some, shift = (
            one[start:stop] if first and one is not None and one.size > 1 else one for one in (scale, zero)
        )
        assert some is not None
        return dequantize_channels(rows(source, start, stop), some, shift, axis)

    large = is_computed_when_read(math.prod(shape) * scale.itemsize)
    by_rows = real_rows if shape and not block and reads_rows(source) else None
    values = weights.ComputedValues(shape, scale.dtype, real, by_rows) if large else real()
    made = edit.add_constant(model, stored.name, "float", values)
    if known is not None:
        known[key] = made
    return made


def is_computed_when_read(size: int) -> bool:
    """Whether a dequantized weight of this many bytes is never held, but computed each time it is read."""
    return size > memory.part_bytes() // _LAZY_SHARE


def values_key(*given: NDArray[Any] | float | None) -> tuple[object, ...]:
    """Key of scales and zero points for a dict: their dtype, shape and bytes."""
    arrays = [None if values is None else np.asarray(values) for values in given]
    return tuple(None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in arrays)


def fits(q: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int) -> bool:
    """Whether scale and zero point have one value, or one per index of the axis."""
    vectors = [values.size for values in (scale, zero) if values is not None and values.size != 1]
    return not vectors or (-q.ndim <= axis < q.ndim and set(vectors) == {q.shape[axis]})
