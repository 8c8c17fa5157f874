"""Choose the scheme and the form of weights that are quantized in blocks of 4 or 8 bits, with mode "weights".

A weight is seen as a matrix of outputs and inputs. A block is a number of consecutive inputs of one output, which share
a scale and a zero point.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from onnx import TensorProto

from onnxshot.errors import TargetError, UsageError
from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import channel_axis
from onnxshot.maths.affine import INT4, INT8, UINT4, UINT8, PerBlock, PerChannel, QuantScheme, QuantType
from onnxshot.planning.plan import DEQUANTIZED, FOLDED, GATHERED, OPERATOR, WEIGHTS, Plan, WeightPlan
from onnxshot.recipes.plain_values import CHANNEL
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_LEAST, _MOST = 16, 256  # powers of 2. Blocks of 512 give wrong results in ONNX Runtime 1.20 to 1.26
_LEAST_DEFAULT = 32  # smaller blocks have more scales than their accuracy is worth
_PRODUCTS = ("MatMul", "Gemm")
MOST_EXPERTS = 256
"""A stack of more matrices is not split into products of one matrix each."""
_COPIES = 2  # products that get a copy of the integers each; with more, one is stored, and unpacked when it is loaded


def bits_of(recipe: Recipe) -> int | None:
    """Bits of the recipe's weights in blocks; None where its weights are not in blocks."""
    if recipe.mode != WEIGHTS:
        return None
    if recipe.bits is not None:
        return recipe.bits
    return 4 if recipe.weight_type == INT4.name else None


def uses_operator(target: Target, recipe: Recipe) -> bool:
    """Whether products by weights in blocks become MatMulNBits."""
    return target.block_operator and recipe.format is None and not recipe.portable_ops


def refuse_blocks(target: Target, recipe: Recipe) -> None:
    """Raise TargetError where the target does not take the blocks of the recipe, UsageError where no target does."""
    bits = bits_of(recipe)
    if bits is None:
        return
    blocks, whole, size = bits in target.block_bits, bits in target.channel_bits, recipe.block
    if not blocks and not whole:
        why = target.refused.get(f"int{bits} weights", f"it has no products by weights in blocks of {bits} bits")
        raise TargetError(f"{bits}-bit weights on {target.name}: {why}", "use [[target=ort]], or leave out [[bits]]")
    if recipe.asymmetric and not target.block_zero_points:
        raise TargetError(f"{target.name} has no zero points of weights", "leave out [[asymmetric]]")
    floats = "are turned into floats before each product"
    if size == CHANNEL and not whole:
        said = f"{bits}-bit weights on {target.name}: with one scale per output they {floats}"
        raise TargetError(said, f"use [[block={target.block_sizes[bits]}]]")
    if not isinstance(size, int) or recipe.bits is None:
        return
    if not blocks:
        raise TargetError(f"{bits}-bit weights on {target.name}: in blocks they {floats}", "use [[block=channel]]")
    sizes = [str(n) for n in (16, 32, 64, 128, 256) if n >= target.least_block]
    hint = f"use {', '.join(sizes[:-1])} or {sizes[-1]}"
    if size & (size - 1) or not _LEAST <= size <= _MOST:
        raise UsageError(f"blocks of {size}: no runtime multiplies by them", hint)
    if size < target.least_block:
        raise TargetError(f"blocks of {size}: {target.name} multiplies by them slower than by larger ones", hint)


def block_plan(node: Node, slot: int, target: Target, recipe: Recipe) -> WeightPlan | None:
    """The scheme and the form of a weight that is quantized in blocks; None where it is quantized another way.

    Args:
        node: the node; its mode is "weights".
        slot: index of the input that holds the weight.
        target: the rules of the runtime.
        recipe: the recipe of this node.
    """
    bits = bits_of(recipe)
    if bits is None or bits not in target.block_bits | target.channel_bits:
        return None
    axis = input_axis(node, slot)
    if axis is None:
        return None
    shape = node.inputs[slot].shape
    if not shape[axis]:
        return None
    form = _form(node, slot, target, recipe)
    asymmetric = bool(recipe.asymmetric)
    method = "minmax" if recipe.effort == "fast" else "mse"
    size = recipe.block if recipe.block is not None else _dividing(shape[axis], target.block_sizes[bits])
    if size == CHANNEL and form in (FOLDED, GATHERED) and target.everywhere:
        size = _MOST  # int8 that no DequantizeLinear reads does not run everywhere
    if size == CHANNEL:
        if form not in (OPERATOR, DEQUANTIZED) or len(shape) != 2:
            return None
        scheme = QuantScheme(_stored_type(bits, asymmetric), not asymmetric, PerChannel(1 - axis))
        return WeightPlan(slot, scheme, method, DEQUANTIZED, True)
    assert isinstance(size, int)
    size = max(min(size, 1 << (shape[axis] - 1).bit_length()), target.least_block, _LEAST)
    if form == DEQUANTIZED:
        while not target.ragged_blocks and shape[axis] % size and size > target.least_block:
            size //= 2
        if not target.ragged_blocks and shape[axis] % size:
            return None
    dtype = _stored_type(bits, asymmetric or form != DEQUANTIZED)
    return WeightPlan(slot, QuantScheme(dtype, not asymmetric, PerBlock(axis, size)), method, form, True)


def stored_twice(model: Model, plan: Plan, nodes: Mapping[str, Node], forced: Container[Node]) -> dict[Node, str]:
    """Nodes whose weight in blocks is read in float too, so that the file would hold both, with the skip reason.

    Args:
        model: the float model.
        plan: the plan to check.
        nodes: label -> node, for the quantized nodes with a weight.
        forced: nodes that are quantized whatever they add.
    """
    found = {}
    for label, node in nodes.items():
        planned = plan.weights.get(label)
        if planned is None or not planned.in_blocks or node in forced:
            continue
        weight = node.inputs[planned.slot]
        others = [user for user in edit.consumers(weight) if user.label not in plan.weights]
        if others or edit.is_output(model, weight):
            by = f"{others[0].label!r}" if others else "the outputs"
            found[node] = f"its weight is read in float by {by} too, and would be stored twice"
    return found


def _dividing(inputs: int, size: int | str) -> int | str:
    """The size, or half or a quarter of it where that divides the inputs: the last block is stored as a whole one."""
    if not isinstance(size, int):
        return size
    sizes = [size >> shift for shift in range(3) if size >> shift >= _LEAST_DEFAULT]
    return next((some for some in sizes if inputs % some == 0), size)


def input_axis(node: Node, slot: int) -> int | None:
    """The axis of a weight along which its values are summed, or along which a table has its columns.

    None for operators whose weights are not quantized in blocks.
    """
    rank = len(node.inputs[slot].shape)
    if node.op == "Gather":
        return 1 if rank == 2 else None
    if node.op not in _PRODUCTS or rank < 2:
        return None
    if node.op == "MatMul":
        return rank - 2 if slot == 1 else rank - 1
    channels = channel_axis(node, slot, rank)
    return None if channels is None or slot != 1 else 1 - channels


def scale_type(weight: Constant) -> int:
    """ONNX type of a weight's scales in the file: the float type that the weight came in."""
    kind = int(getattr(weight, "stored_as", 0) or 0)
    return kind if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else weights.elem_type(weight)


def _form(node: Node, slot: int, target: Target, recipe: Recipe) -> str:
    if node.op == "Gather":
        return DEQUANTIZED if target.shares_blocks else GATHERED
    rank = len(node.inputs[slot].shape)
    stack = rank == 3 and target.splits_experts and node.inputs[slot].shape[0] <= MOST_EXPERTS
    matrix = slot == 1 and (rank == 2 or stack)
    plain = not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == 1.0
    if uses_operator(target, recipe):
        return OPERATOR if matrix and plain else FOLDED
    if target.shares_blocks:
        return DEQUANTIZED
    copies = len(edit.consumers(node.inputs[slot]))
    return DEQUANTIZED if matrix and plain and copies <= _COPIES else FOLDED


def unsigned(dtype: QuantType) -> QuantType:
    """The unsigned type of as many bits."""
    return UINT4 if dtype.bits == 4 else UINT8


def _stored_type(bits: int, asymmetric: bool) -> QuantType:
    if asymmetric:
        return UINT4 if bits == 4 else UINT8
    return INT4 if bits == 4 else INT8
