"""Normalize a model before a plan is made: fold constants, raise the opset if needed, widen 16-bit floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import TensorProto

from onnxshot.graph import Model, edit, shape_inference, weights
from onnxshot.passes.base import Pass
from onnxshot.passes.canonical_matmul import CanonicalMatMul
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.passes.einsum_to_matmul import EinsumToMatMul
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.inline_functions import InlineFunctions
from onnxshot.passes.name_nodes import NameNodes
from onnxshot.passes.normalize import normalize
from onnxshot.passes.remove_unused import RemoveUnused
from onnxshot.passes.restore_precision16 import RestorePrecision16
from onnxshot.passes.tie_weights import tied_names
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.planning.block_schemes import bits_of, uses_operator
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.node_recipe import NodeRecipes, under_rule
from onnxshot.planning.plan import FLOAT
from onnxshot.planning.precision16_ops import HALVES
from onnxshot.planning.schemes import schemes
from onnxshot.recipes.plain_values import CHANNEL
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_HALF_SCALES = 19  # first opset whose QuantizeLinear and DequantizeLinear accept 16-bit scales


def prepare(
    model: Model, target: Target, recipe: Recipe, *, keep_overridable: bool = False, half: bool = False
) -> None:
    """Normalize a model for a recipe. Its opset is raised only if the plan has nodes that need it.

    Args:
        model: The model; it is edited in place.
        target: The target, whose rules decide what is quantized.
        recipe: The recipe.
        keep_overridable: Keep initializers that are listed as inputs, so that callers can override them.
        half: Whether the result computes in 16-bit floats.

    Raises:
        ModelError: The opset must be raised and cannot be, or a tensor is too large for this machine.
    """
    normalize(model, keep_overridable=keep_overridable)
    _rewrite_products(model, target, recipe)
    needed = max(lowest_opset(model, target, recipe), _HALF_SCALES if half else 1)
    if model.opset < needed and _changes(model, target, recipe):
        normalize(model, opset=needed, keep_overridable=keep_overridable)
    model.tied = tied_names(model)
    shape_inference.refuse_giants(model)


def widen(model: Model) -> WidenPrecision16:
    """Convert a model that computes in 16-bit floats to float32.

    Weights that are only stored in 16 bits are widened too, and remember their type. If the model stays in 16 bits, a
    note in the model says why.

    Returns:
        The pass, which records the tensors that were widened; `narrow` uses it.
    """
    pass_ = WidenPrecision16()
    change = pass_.run(model)
    if change.skips:
        skip = change.skips[0]
        model.notes.append(f"left in 16 bits: node {skip.node!r} ({skip.op}): {skip.reason}")
    return pass_


def narrow(model: Model, widened: WidenPrecision16) -> None:
    """Convert the tensors that `widen` widened back to 16 bits."""
    if widened.computed:
        RestorePrecision16(widened.computed, widened.known, widened.makers).run(model)


def half_notes(widened: Mapping[str, int], *, kept: bool) -> list[str]:
    """Notes for the report on a model that computes in 16-bit floats.

    Args:
        widened: Name of each widened tensor -> its former ONNX type.
        kept: Whether the result computes in that type again.
    """
    if not widened:
        return []
    kinds = " and ".join(sorted({TensorProto.DataType.Name(kind).lower() for kind in widened.values()}))
    if kept:
        return [f"the model computes in {kinds}, and so does the result"]
    what = f"the model computes in {kinds}: {len(widened)} tensors were widened to float32"
    return [f"{what}; inputs and outputs keep their types"]


def name_nodes(model: Model) -> None:
    """Inline local functions and give every node a name."""
    for step in (InlineFunctions(), NameNodes()):
        step.run(model)


def _rewrite_products(model: Model, target: Target, recipe: Recipe) -> None:
    """Rewrite the products that the recipe may quantize as MatMuls that have int8 kernels."""
    if not recipe.quantizes or recipe.mode == "weights" or "MatMul" not in target.static | target.dynamic:
        return
    left, least = NodeRecipes(model, recipe).excluded, target.min_dynamic_weights
    steps: tuple[Pass, ...] = (EinsumToMatMul(left, least), CanonicalMatMul(left, least))
    if sum(step.run(model).edits for step in steps):
        shape_inference.infer(model)
        for tidying in (FoldConstants(), DropIdentity(), RemoveUnused()):
            tidying.run(model)
        edit.toposort(model)


def _changes(model: Model, target: Target, recipe: Recipe) -> bool:
    """Whether any node will be quantized or converted to 16 bits."""
    return bool(recipe.half) or any(n.how != FLOAT for n in make_plan(model, target, recipe).nodes)


def fold_constants(model: Model) -> None:
    """Inline functions and fold constants, so that scales are initializers of their Q and DQ, which are not folded."""
    name_nodes(model)
    for step in (FoldConstants(), DropIdentity(), RemoveUnused()):
        step.run(model)


def lowest_opset(model: Model, target: Target, recipe: Recipe) -> int:
    """The lowest opset that the recipe's scheme needs.

    QuantizeLinear-13 introduced per-channel scales, version 19 float16 scales and float8, version 21 types of 16 and 4
    bits. A recipe that only converts to 16-bit floats needs the opset of that type.
    """
    if not recipe.quantizes:
        return HALVES[recipe.half or ""].opset
    activation, weight = schemes(target, recipe)
    if recipe.layers:
        every = (replace(recipe, layers={}), *(under_rule(recipe, rule) for rule in recipe.rules.values()))
        return max(lowest_opset(model, target, one) for one in every)
    in_blocks = bits_of(recipe)
    per_channel = in_blocks == 4 and recipe.block == CHANNEL  # 4-bit tensors, whatever the operator
    stored = in_blocks is not None and (per_channel or not uses_operator(target, recipe))
    if max(activation.dtype.bits, weight.dtype.bits) > 8 or weight.dtype.bits == 4 or stored:
        return 21
    half = any(weights.elem_type(c) == TensorProto.FLOAT16 for c in model.constants())
    return 19 if activation.dtype.floating or (recipe.mode == "weights" and half) else 13
