"""What several commands do before the work starts: normalize for a recipe, and ask which inputs, preset and opset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import TensorProto, helper

from onnxshot.calibration.preprocess import Preset, load_preset
from onnxshot.calibration.readers import InputSpec
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.graph import Model, Node, edit, shapes, weights
from onnxshot.graph.fixed_shapes import Frozen, frozen
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.load import copy_of
from onnxshot.graph.macs import concrete_shapes
from onnxshot.passes.base import Pass
from onnxshot.passes.canonical_matmul import CanonicalMatMul
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.passes.einsum_to_matmul import EinsumToMatMul
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.inline_functions import InlineFunctions
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.passes.name_nodes import NameNodes
from onnxshot.passes.normalize import normalize
from onnxshot.passes.qoperator_to_qdq import OPSET, QOperatorToQdq
from onnxshot.passes.remove_unused import RemoveUnused
from onnxshot.passes.restore_half import RestoreHalf
from onnxshot.passes.strip_qdq import PAIR, StripQdq
from onnxshot.passes.tie_weights import tied_names
from onnxshot.passes.widen_half import WidenHalf
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.planning.node_recipe import NodeRecipes, under_rule
from onnxshot.planning.plan import FLOAT
from onnxshot.planning.precision16_ops import HALVES
from onnxshot.planning.schemes import schemes
from onnxshot.planning.trained_scales import NOTHING, Trained, read_pairs
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

MOST_FROZEN = 2 << 30
"""Most bytes that a tensor of a model whose dimensions are frozen may have: a run holds several at a time."""
_HALF_SCALES = 19  # the first opset whose Q and DQ take scales of 16 bits
_MOST_TOGETHER = 32 << 30  # bytes of all tensors of such a model: no run holds them at once, but each takes its time


def input_specs(model: Model) -> list[InputSpec]:
    """Names, dtypes and shapes of the model's inputs, as calibration data is held against them."""
    specs = []
    for tensor in model.graph.inputs:
        kind = model.elem_type(tensor)
        if not kind:
            raise CalibrationError(
                f"input {tensor.name!r} is not a tensor, and samples are of tensors only",
                "--mode dynamic and --mode weights need no samples",
            )
        specs.append(InputSpec(tensor.name, helper.tensor_dtype_to_np_dtype(kind), model.shape(tensor)))
    return specs


def sizes_of(model: Model, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> Frozen:
    """The dimensions of the model's inputs that these freeze.

    Raises UsageError where they contradict the model, or make a tensor of it larger than MOST_FROZEN, or all of
    them together larger than _MOST_TOGETHER.
    """
    found = frozen({tensor.name: model.shape(tensor) for tensor in model.graph.inputs}, batch, shapes)
    if found:
        sizes = {name: tuple(d if isinstance(d, int) else 1 for d in dims) for name, dims in found.inputs.items()}
        _refuse_vast(sizes)
        _refuse_vast(concrete_shapes(model, sizes))
    return found


def _refuse_vast(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError for a tensor that is too large, counted as if each of its elements took 4 bytes."""
    for name, dims in shapes.items():
        size = 4 * math.prod(dims)
        if size > MOST_FROZEN:
            what = f"frozen at these sizes, tensor {name!r} of shape {shown(list(dims))} takes {size / 1e9:.3g} GB"
            raise UsageError(what, f"freeze it at smaller ones: a tensor may have {MOST_FROZEN / 1e9:.3g} GB")
    together = sum(4 * math.prod(dims) for dims in shapes.values())
    if together > _MOST_TOGETHER:
        what = f"frozen at these sizes, the model's {len(shapes)} tensors take {together / 1e9:.3g} GB together"
        raise UsageError(what, f"freeze it at smaller ones: they may have {_MOST_TOGETHER / 1e9:.3g} GB")


def frozen_specs(model: Model, sizes: Frozen) -> list[InputSpec]:
    """What samples of a model whose dimensions will be frozen are held against; several may make a batch."""
    found = []
    for spec in input_specs(model):
        shape = sizes.dims(spec.name, spec.shape)
        if shape and spec.shape and not isinstance(spec.shape[0], int):
            shape = (spec.shape[0], *shape[1:])
        found.append(replace(spec, shape=shape))
    return found


def resolve_preset(preset: str | Preset | None) -> Preset | None:
    """The preset itself, whether it was given by name, as a YAML file, or as a value."""
    return load_preset(preset) if isinstance(preset, str) else preset


def prepare(
    model: Model, target: Target, recipe: Recipe, *, keep_overridable: bool = False, half: bool = False
) -> None:
    """Normalize a model for a recipe; its opset is raised only where something will be quantized that needs it.

    half: the result computes in 16 bits.

    Raises ModelError where the opset must be raised and cannot be, or a tensor is too large for this machine.
    """
    normalize(model, keep_overridable=keep_overridable)
    _spell(model, target, recipe)
    needed = max(lowest_opset(model, target, recipe), _HALF_SCALES if half else 1)
    if model.opset < needed and _changes(model, target, recipe):
        normalize(model, opset=needed, keep_overridable=keep_overridable)
    model.tied = tied_names(model)
    shapes.refuse_giants(model)


def widen(model: Model) -> WidenHalf:
    """Let a model compute in float32 what it computes in 16 bits; the pass knows which tensors were so.

    What was done, or why it was not, is told by the model's notes. Weights that are only stored so are widened too, and
    remember it.
    """
    pass_ = WidenHalf()
    change = pass_.run(model)
    if change.skips:
        skip = change.skips[0]
        model.notes.append(f"left in 16 bits: node {skip.node!r} ({skip.op}): {skip.reason}")
    return pass_


def narrow(model: Model, widened: WidenHalf) -> None:
    """Let a model compute in 16 bits again what it was widened from."""
    if widened.computed:
        RestoreHalf(widened.computed, widened.known, widened.makers).run(model)


def told_of_half(widened: Mapping[str, int], *, kept: bool) -> list[str]:
    """What a user should know of a model that computes in floats of 16 bits; kept: its form is given back to it."""
    if not widened:
        return []
    kinds = " and ".join(sorted({TensorProto.DataType.Name(kind).lower() for kind in widened.values()}))
    if kept:
        return [f"the model computes in {kinds}, and so does the result"]
    what = f"the model computes in {kinds}: {len(widened)} tensors were widened to float32"
    return [f"{what}; inputs and outputs keep their types"]


def name(model: Model) -> None:
    """Inline functions, and give every node a name."""
    for step in (InlineFunctions(), NameNodes()):
        step.run(model)


def _spell(model: Model, target: Target, recipe: Recipe) -> None:
    """Bring products that are to be quantized into the form that int8 kernels know; what is left out stays."""
    if not recipe.quantizes or recipe.mode == "weights" or "MatMul" not in target.static | target.dynamic:
        return
    left, least = NodeRecipes(model, recipe).left, target.min_dynamic_weights
    steps: tuple[Pass, ...] = (EinsumToMatMul(left, least), CanonicalMatMul(left, least))
    if sum(step.run(model).edits for step in steps):
        shapes.infer(model)
        for tidying in (FoldConstants(), DropIdentity(), RemoveUnused()):
            tidying.run(model)
        edit.toposort(model)


def _changes(model: Model, target: Target, recipe: Recipe) -> bool:
    """Whether anything will be quantized or halved."""
    return bool(recipe.half) or any(n.how != FLOAT for n in make_plan(model, target, recipe).nodes)


def fold(model: Model) -> None:
    """Inline functions and fold constants, so that scales stand at their Q and DQ; quantization stays as it is."""
    name(model)
    for step in (FoldConstants(), DropIdentity(), RemoveUnused()):
        step.run(model)


def to_float(model: Model, *, complete: bool, requantize: bool) -> Trained:
    """Take a model that is quantized already back to float; the scales that it brought, where they are to be kept.

    Raises UsageError where nobody has asked for that, and where it cannot be done.
    """
    if complete and requantize:
        raise UsageError("--complete keeps the scales that --requantize takes out", "give one of them")
    found = already_quantized(model)
    if not found:
        return NOTHING
    what = f"the model is quantized already: {len(found)} nodes such as {found[0].label!r} ({found[0].op})"
    if not complete and not requantize:
        raise UsageError(what, _ways_out(model))
    names = {node.label: node.op for node in found}
    fold(model)
    if any(node.op in FORMS for _, node in model.walk()):
        shapes.raise_opset(model, OPSET)
        QOperatorToQdq().run(model)
    trained = read_pairs(model) if complete else NOTHING
    edits = 0 if complete else IntegerOpsToFloat().run(model).edits
    edits += StripQdq().run(model).edits
    left = [node for node in already_quantized(model) if not complete or node.op in FORMS or node.op in PAIR]
    if left:
        raise UsageError(
            f"{_named(left, names)} cannot be taken back to float",
            "start from the float model, or from one with QuantizeLinear and DequantizeLinear pairs",
        )
    kept = len(already_quantized(model))
    if edits:
        model.notes.append(f"{edits} Q/DQ pairs and integer operators of the input were taken out before quantizing")
    if kept:
        model.notes.append(f"{kept} integer operators of the input, which need no pairs, stay as they are")
    return trained


def _named(left: Sequence[Node], names: Mapping[str, str]) -> str:
    """How many nodes, and one of them, by the name and operator that it had in the file. names: operators there."""
    one = left[0]
    own = max((name for name in names if f"{one.label}_".startswith(f"{name}_")), key=len, default="")
    return f"{len(left)} nodes such as {own or one.label!r} ({names.get(own, one.op)})"


def _ways_out(model: Model) -> str:
    """What to do about a model that is quantized already: what was tried on a copy and works."""
    tried = {}
    for way in ("complete", "requantize"):
        try:
            to_float(copy_of(model), complete=way == "complete", requantize=way == "requantize")
        except UsageError as refused:
            tried[way] = refused.message
    ways = {
        "complete": "pass --complete to keep its scales and quantize the rest",
        "requantize": "pass --requantize to go back to float first",
    }
    works = [told for way, told in ways.items() if way not in tried]
    said = ", or ".join(["start from the float model", *works])
    return f"{said}: {tried['requantize']}" if "requantize" in tried else said


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
