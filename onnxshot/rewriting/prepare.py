"""Normalize a model for a recipe: raise its opset where needed, widen 16-bit floats, fold constants."""

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
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.node_recipe import NodeRecipes, under_rule
from onnxshot.planning.plan import FLOAT
from onnxshot.planning.precision16_ops import HALVES
from onnxshot.planning.schemes import schemes
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_HALF_SCALES = 19  # the first opset whose Q and DQ take scales of 16 bits


def prepare(
    model: Model, target: Target, recipe: Recipe, *, keep_overridable: bool = False, half: bool = False
) -> None:
    """Normalize a model for a recipe; its opset is raised only where something will be quantized that needs it.

    half: the result computes in 16 bits.

    Raises ModelError where the opset must be raised and cannot be, or a tensor is too large for this machine.
    """
    normalize(model, keep_overridable=keep_overridable)
    _rewrite_products(model, target, recipe)
    needed = max(lowest_opset(model, target, recipe), _HALF_SCALES if half else 1)
    if model.opset < needed and _changes(model, target, recipe):
        normalize(model, opset=needed, keep_overridable=keep_overridable)
    model.tied = tied_names(model)
    shape_inference.refuse_giants(model)


def widen(model: Model) -> WidenPrecision16:
    """Let a model compute in float32 what it computes in 16 bits; the pass knows which tensors were so.

    What was done, or why it was not, is told by the model's notes. Weights that are only stored so are widened too, and
    remember it.
    """
    pass_ = WidenPrecision16()
    change = pass_.run(model)
    if change.skips:
        skip = change.skips[0]
        model.notes.append(f"left in 16 bits: node {skip.node!r} ({skip.op}): {skip.reason}")
    return pass_


def narrow(model: Model, widened: WidenPrecision16) -> None:
    """Let a model compute in 16 bits again what it was widened from."""
    if widened.computed:
        RestorePrecision16(widened.computed, widened.known, widened.makers).run(model)


def half_notes(widened: Mapping[str, int], *, kept: bool) -> list[str]:
    """What a user should know of a model that computes in floats of 16 bits; kept: its form is given back to it."""
    if not widened:
        return []
    kinds = " and ".join(sorted({TensorProto.DataType.Name(kind).lower() for kind in widened.values()}))
    if kept:
        return [f"the model computes in {kinds}, and so does the result"]
    what = f"the model computes in {kinds}: {len(widened)} tensors were widened to float32"
    return [f"{what}; inputs and outputs keep their types"]


def name_nodes(model: Model) -> None:
    """Inline functions, and give every node a name."""
    for step in (InlineFunctions(), NameNodes()):
        step.run(model)


def _rewrite_products(model: Model, target: Target, recipe: Recipe) -> None:
    """Bring products that are to be quantized into the form that int8 kernels know; what is left out stays."""
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
    """Whether anything will be quantized or halved."""
    return bool(recipe.half) or any(n.how != FLOAT for n in make_plan(model, target, recipe).nodes)


def fold_constants(model: Model) -> None:
    """Inline functions and fold constants, so that scales stand at their Q and DQ; quantization stays as it is."""
    name_nodes(model)
    for step in (FoldConstants(), DropIdentity(), RemoveUnused()):
        step.run(model)


def lowest_opset(model: Model, target: Target, recipe: Recipe) -> int:
    """The lowest opset the scheme needs.

    13 for a scale per channel, 19 for float16 scales and float8, 21 for types of 16 and 4 bits.

    Floats of 16 bits alone need what their own type does.
    """
    if not recipe.quantizes:
        return HALVES[recipe.half or ""].opset
    activation, weight = schemes(target, recipe)
    if recipe.layers:
        every = (replace(recipe, layers={}), *(under_rule(recipe, rule) for rule in recipe.rules.values()))
        return max(lowest_opset(model, target, one) for one in every)
    if max(activation.dtype.bits, weight.dtype.bits) > 8 or weight.dtype.bits == 4:
        return 21
    half = any(weights.elem_type(c) == TensorProto.FLOAT16 for c in model.constants())
    return 19 if activation.dtype.floating or (recipe.mode == "weights" and half) else 13
