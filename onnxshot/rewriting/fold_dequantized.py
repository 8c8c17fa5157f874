"""Unpack weights in blocks when the file is loaded, where ONNX Runtime would dequantize them at every run.

`passes/dequantized_blocks.py` writes products so that ONNX Runtime fuses them with their DequantizeLinear. This module
checks the result: it lets ONNX Runtime optimize the model and looks which weights it still dequantizes. Such a product
runs at 0.04x to 0.4x of float; with its weight unpacked when the file is loaded, it runs as fast as in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.maths.affine import INT4, INT8, UINT4, UINT8
from onnxshot.passes.block_weights import Packed, unpacked
from onnxshot.passes.blocks import LAZY_BYTES
from onnxshot.passes.blocks import packed as pack
from onnxshot.planning.plan import DEQUANTIZED, WEIGHTS, Plan
from onnxshot.runtimes.ort_dequantized_weights import dequantized_weights
from onnxshot.targets.base import Target

_BITS = {t.storage: t.bits for t in (INT4, UINT4, INT8, UINT8)}


def fold_dequantized(model: Model, plan: Plan, target: Target) -> list[str]:
    """Replace the DequantizeLinear of weights that ONNX Runtime would dequantize at every run.

    Args:
        model: the quantized model; it is edited in place.
        plan: its plan.
        target: the target. Nothing is done unless ONNX Runtime runs its files, and needs them placed with care.

    Returns:
        Notes for the report.
    """
    planned = plan.labels(WEIGHTS)
    in_blocks = {label for label in planned if plan.weights[label].in_blocks}
    if not target.runs_here or target.shares_blocks:
        return []
    if not any(plan.weights[label].form == DEQUANTIZED for label in in_blocks):
        return []
    found = dequantized_weights(model)
    nodes = [n for _, n in model.walk() if n.op == "DequantizeLinear" and n.inputs[0].name in found]
    folded = [node for node in nodes if _fold(model, node)]
    if not folded:
        return []
    edit.remove_unused(model)
    edit.toposort(model)
    return [f"{len(folded)} weights are unpacked when the file is loaded: ONNX Runtime fuses none of their products"]


def _fold(model: Model, node: Node) -> bool:
    """Replace a DequantizeLinear of a stored matrix by floats that are computed once. Returns whether it was done."""
    values, scale = node.inputs[0], _constant(node.inputs[1])
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if not isinstance(values, Constant) or scale is None or not (zero is None or isinstance(zero, Constant)):
        return False
    bits, shape = _BITS.get(values._values.dtype), tuple(values.shape)
    if bits is None or len(shape) != 2 or any(user.op not in ("MatMul", "Gemm") for user in _users(node)):
        return False
    axis, size = int(node.attrs.get("axis", 1)) % 2, int(node.attrs.get("block_size", 0))
    along = axis if size else 1 - axis
    if not size and scale.shape and int(np.prod(scale.shape)) != shape[axis]:
        return False
    inputs = shape[along]
    whole = size or inputs + inputs % 2
    work = partial(_packed, values, scale, zero, along == 0, whole, bits)
    count = -(-inputs // whole)
    outputs = shape[1 - along]
    sizes = ((outputs, count, whole * bits // 8), (outputs, count), (outputs, -(-count * bits // 8)))
    kinds = (np.dtype(np.uint8), np.dtype(scale._values.dtype), np.dtype(np.uint8))
    made: Sequence[NDArray[Any] | weights.ComputedValues]
    if weights.size_bytes(values) <= LAZY_BYTES:
        made = work()
    else:
        made = [
            weights.ComputedValues(size, kind, partial(_part, work, i))
            for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
        ]
    base = values.name
    signed = values._values.dtype in (INT4.storage, INT8.storage)
    zeros = None if zero is None and signed else edit.add_constant(model, base, "zero_points", made[2])
    scales = edit.add_constant(model, base, "scales", made[1])
    scales.of_blocks = True
    packed = Packed(edit.add_constant(model, base, "blocks", made[0]), scales, zeros, bits, whole, inputs)
    kind = model.elem_type(node.outputs[0]) or weights.elem_type(scale)
    floats = unpacked(model, packed, shape, along == 0, base=base, kind=kind)
    edit.replace_uses(model, node.outputs[0], floats)
    return True


def _packed(
    values: Constant, scale: Constant, zero: Constant | None, turned: bool, size: int, bits: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The arrays of `Packed`."""

    def matrix(constant: Constant) -> NDArray[Any]:
        array = np.asarray(weights.read(constant))
        if array.ndim < 2:
            return np.broadcast_to(array.reshape(-1, 1), (values.shape[1 if turned else 0], 1))
        return array.T if turned else array

    middle = 1 << (bits - 1)
    shift = middle if values._values.dtype in (INT4.storage, INT8.storage) else 0
    codes = (matrix(values).astype(np.int16) + shift).astype(np.uint8)
    scales = np.ascontiguousarray(matrix(scale))
    zeros = np.full(scales.shape, shift, np.int16) if zero is None else matrix(zero).astype(np.int16) + shift
    return pack(np.ascontiguousarray(codes), scales, zeros.astype(np.uint8), size, bits)


def _part(work: Any, number: int) -> NDArray[Any]:
    array: NDArray[Any] = work()[number]
    return array


def _constant(tensor: Tensor) -> Constant | None:
    """A constant, or the one behind a Cast."""
    maker = edit.producer(tensor)
    source = maker.inputs[0] if maker is not None and maker.op == "Cast" else tensor
    return source if isinstance(source, Constant) else None


def _users(node: Node) -> list[Node]:
    return edit.consumers(node.outputs[0])
