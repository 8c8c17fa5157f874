"""Rewrite a graph according to its plan, then convert it to the format and the form that the target needs."""

from __future__ import annotations

from onnxshot.graph import Model, edit
from onnxshot.graph.skip import Skip
from onnxshot.passes.apply_repairs import ApplyRepairs, CorrectedBias
from onnxshot.passes.apply_smoothquant import ApplySmoothQuant
from onnxshot.passes.base import Pass
from onnxshot.passes.drop_zero_points import DropZeroPoints
from onnxshot.passes.expand_simplified_norm import ExpandSimplifiedNorm
from onnxshot.passes.image_input_grid import QuantizeByChannel
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.passes.isolate_softmax import IsolateSoftmax
from onnxshot.passes.keep_float import KeepFloat
from onnxshot.passes.merge_products import MergeProducts
from onnxshot.passes.move_qdq import MoveQdq
from onnxshot.passes.one_dequantized_reader import OneDequantizedReader
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.passes.quantized_shapes import QuantizedShapes
from onnxshot.passes.split_experts import SplitExperts
from onnxshot.passes.store_biases import StoreBiases
from onnxshot.passes.store_int8 import StoreInt8
from onnxshot.passes.store_original_dtype import StoreOriginalDtype
from onnxshot.passes.tie_weights import TieWeights, ties_of
from onnxshot.passes.to_qoperator import ToQOperator
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.passes.weight_only import QuantizeWeightsOnly
from onnxshot.planning.plan import DYNAMIC, FLOAT, WEIGHTS, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets import target_named
from onnxshot.targets.base import Target


def apply_plan(model: Model, plan: Plan, recipe: Recipe) -> list[Skip]:
    """Rewrite the graph according to the plan.

    Args:
        model: The prepared model; it is edited in place.
        plan: The plan that was made for it.
        recipe: The recipe.

    Returns:
        The nodes that passes skipped.
    """
    target = target_named(plan.target)
    experts = SplitExperts(plan, target)
    experts.run(model)
    plan = experts.plan
    ties = ties_of(model, model.tied)
    ApplyRepairs({label: CorrectedBias(bias) for label, bias in plan.biases.items()}).run(model)
    skips = InsertQdq(plan).run(model).skips if plan.tensors else []
    QuantizeByChannel(plan).run(model)
    if target.quantizes_outputs and not target.everywhere:
        QuantizedShapes().run(model)
    ApplySmoothQuant(plan.smoothing, plan.labels(DYNAMIC), plan.labels(WEIGHTS) | plan.kept.nodes).run(model)
    merge = MergeProducts(plan)
    merge.run(model)
    skips += QuantizeDynamically(merge.plan).run(model).skips
    if target.runs_here:  # before weights are only stored in int8: KeepFloat looks for float weights
        floats = plan.labels(FLOAT) | plan.folded
        KeepFloat(floats, per_axis=not target.everywhere).run(model)
        OneDequantizedReader(floats).run(model)
    steps = (
        QuantizeWeightsOnly(plan, ties), TieWeights(ties), UndoLargeFolds(),
        StoreInt8(plan.stored, recipe.weight_method), StoreOriginalDtype(),
    )  # fmt: skip
    skips += [skip for step in steps for skip in step.run(model).skips]
    _tidy(model)
    return skips


def finish(model: Model, target: Target, recipe: Recipe) -> list[Skip]:
    """Convert a rewritten graph to the recipe's format and to the form that the target's runtimes need.

    Run it once, after bias correction and everything else that changes weights and biases.

    Returns:
        The nodes that passes skipped.
    """
    passes: list[Pass] = []
    if recipe.format == "qoperator":
        passes.append(ToQOperator())
    if target.quantizes_outputs and target.activation.is_symmetric:
        passes.append(MoveQdq(target))  # a Q with zero point 0 cannot replace the Relu before it
    if target.stores_biases:
        passes += [StoreBiases(), DropZeroPoints()]  # last: biases are corrected in float
    if target.isolates_softmax:
        passes.append(IsolateSoftmax())
    if not target.runs_here or target.everywhere:
        passes.append(ExpandSimplifiedNorm())  # for runtimes other than ONNX Runtime
    skips = [skip for step in passes for skip in step.run(model).skips]
    if passes:
        _tidy(model)
    return skips


def _tidy(model: Model) -> None:
    """Remove what nothing reads, and sort the nodes."""
    edit.remove_unused(model)
    edit.toposort(model)
