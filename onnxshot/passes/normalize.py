"""Normalize a model before planning: the list of passes that run on every model, and their order.

Afterwards weights are direct inputs of their operators, foldable nodes are folded, and operators have the form that
runtimes fuse. To add a fusion or fold, add its pass to REPEATED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxshot.graph import Model, edit, opset_upgrade, shape_inference
from onnxshot.passes.base import Change, Pass
from onnxshot.passes.castlike_to_cast import CastLikeToCast
from onnxshot.passes.constant_reshape_shapes import ConstantReshapeShapes
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.passes.drop_overridable import DropOverridable
from onnxshot.passes.fold_affine import FoldAffine
from onnxshot.passes.fold_batchnorm import FoldBatchNorm
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.fold_pad import FoldPad
from onnxshot.passes.fold_repeat import FoldRepeat
from onnxshot.passes.fold_shuffle import FoldShuffle
from onnxshot.passes.full_axes import FullAxes
from onnxshot.passes.fuse_activations import FuseActivations
from onnxshot.passes.fuse_layer_norm import FuseLayerNorm
from onnxshot.passes.fusible_gelu import FusibleGelu
from onnxshot.passes.fusible_rms_norm import FusibleRmsNorm
from onnxshot.passes.inline_functions import InlineFunctions
from onnxshot.passes.layout import FewestTransposes
from onnxshot.passes.mean_to_global_pool import MeanToGlobalPool
from onnxshot.passes.move_shapes import MoveShapes
from onnxshot.passes.name_nodes import NameNodes
from onnxshot.passes.nchwc_to_nchw import NchwcToNchw
from onnxshot.passes.remove_unused import RemoveUnused
from onnxshot.passes.scalar_inputs import ScalarInputs
from onnxshot.passes.sequence_to_split import SequenceToSplit
from onnxshot.passes.sizes_from_inputs import SizesFromInputs
from onnxshot.passes.static_shapes import StaticShapes
from onnxshot.passes.unfuse import Unfuse, holds_fused

_ROUNDS = 8  # upper limit; real models need two or three rounds

_BY_SIZE = (FoldConstants, ConstantReshapeShapes, SizesFromInputs)  # passes that use symbolic shapes
REPEATED: Sequence[Pass] = (
    CastLikeToCast(),  # before FoldConstants, so that a CastLike of a constant is folded
    FoldConstants(),
    ConstantReshapeShapes(),
    ScalarInputs(),
    SequenceToSplit(),
    FullAxes(),
    DropIdentity(),
    SizesFromInputs(),
    MoveShapes(),  # before the passes that fuse ops with one reader
    FuseActivations(),  # before FoldAffine, which would fold the division of Gelu into another op
    FuseLayerNorm(),
    FusibleGelu(),
    FusibleRmsNorm(),  # before FoldAffine, which keeps what runtimes fuse
    FoldBatchNorm(),
    FoldAffine(),
    FoldShuffle(),
    MeanToGlobalPool(),
    FoldRepeat(),
    FewestTransposes(),
    FoldPad(),
)


def normalize(model: Model, *, opset: int | None = None, keep_overridable: bool = False) -> list[tuple[str, Change]]:
    """Normalize a model in place. Names, types and dimensions of its inputs and outputs do not change.

    Args:
        model: the model.
        opset: opset to raise the model to, if its opset is lower; None to keep its opset.
        keep_overridable: whether initializers that are also inputs stay overridable. Such weights are not quantized.

    Returns:
        (pass name, edits of all rounds and skips of the last round) for each pass, in the order of their first run.

    Raises:
        ModelError: a local function cannot be inlined, or the opset cannot be raised.
    """
    done: dict[str, Change] = {}

    def run(step: Pass) -> int:
        change = step.run(model)
        before = done.get(step.name)
        done[step.name] = Change(change.edits + (before.edits if before else 0), change.skips)
        return change.edits

    run(InlineFunctions())
    while holds_fused(model):
        shape_inference.infer(model)
        if not run(NchwcToNchw()) + run(Unfuse()):
            break
    if opset is not None:
        opset_upgrade.raise_opset(model, opset)
    run(DropOverridable(keep_overridable))
    run(NameNodes())
    run(RemoveUnused())
    known = StaticShapes.of(model)
    shape_inference.infer(model, known.found)
    for _ in range(_ROUNDS):
        edits = [run(replace(step, known=known) if isinstance(step, _BY_SIZE) else step) for step in REPEATED]
        if not any(edits):
            break
        edit.remove_unused(model)
        known = StaticShapes.of(model)
        shape_inference.infer(model, known.found)
    run(RemoveUnused())
    edit.toposort(model)
    return list(done.items())
