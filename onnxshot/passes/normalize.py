"""Bring a model into the form the other passes expect: weights at their ops, nothing that does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxshot.graph import Model, edit, shapes
from onnxshot.passes.base import Change, Pass
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
from onnxshot.passes.inline_functions import InlineFunctions
from onnxshot.passes.known_sizes import Known
from onnxshot.passes.layout import FewestTransposes
from onnxshot.passes.move_shapes import MoveShapes
from onnxshot.passes.name_nodes import NameNodes
from onnxshot.passes.order_gelu import OrderGelu
from onnxshot.passes.order_norms import OrderNorms
from onnxshot.passes.plain_casts import PlainCasts
from onnxshot.passes.pool_means import PoolMeans
from onnxshot.passes.remove_unused import RemoveUnused
from onnxshot.passes.reshape_targets import ReshapeTargets
from onnxshot.passes.scalar_inputs import ScalarInputs
from onnxshot.passes.sizes_from_inputs import SizesFromInputs
from onnxshot.passes.unblock import Unblock
from onnxshot.passes.unfuse import Unfuse, holds_fused

_ROUNDS = 8  # each round can only make the graph smaller; real models need two or three

_BY_SIZE = (FoldConstants, ReshapeTargets, SizesFromInputs)  # ask for sizes that do not depend on what is fed
REPEATED: Sequence[Pass] = (
    PlainCasts(),  # before FoldConstants, which folds what depends on no input
    FoldConstants(),
    ReshapeTargets(),
    ScalarInputs(),
    FullAxes(),
    DropIdentity(),
    SizesFromInputs(),
    MoveShapes(),  # before the passes that fuse what one op alone reads
    FuseActivations(),  # before FoldAffine, which would fold the division in it elsewhere
    FuseLayerNorm(),
    OrderGelu(),
    OrderNorms(),  # before FoldAffine, which leaves whole what runtimes fuse
    FoldBatchNorm(),
    FoldAffine(),
    FoldShuffle(),
    PoolMeans(),
    FoldRepeat(),
    FewestTransposes(),
    FoldPad(),
)


def normalize(model: Model, *, opset: int | None = None, keep_overridable: bool = False) -> list[tuple[str, Change]]:
    """Run the normalize passes; each one's name and what it did, over all rounds, in the order they ran first.

    `opset` raises the default opset where it is lower; never done otherwise. Names, types and dimensions of the
    model's inputs and outputs stay. Raises ModelError where functions cannot be inlined or the opset not be raised.
    """
    done: dict[str, Change] = {}

    def run(step: Pass) -> int:
        change = step.run(model)
        before = done.get(step.name)
        done[step.name] = Change(change.edits + (before.edits if before else 0), change.skips)
        return change.edits

    run(InlineFunctions())
    while holds_fused(model):
        shapes.infer(model)
        if not run(Unblock()) + run(Unfuse()):
            break
    if opset is not None:
        shapes.raise_opset(model, opset)
    run(DropOverridable(keep_overridable))
    run(NameNodes())
    run(RemoveUnused())
    known = Known.of(model)
    shapes.infer(model, known.found)
    for _ in range(_ROUNDS):
        edits = [run(replace(step, known=known) if isinstance(step, _BY_SIZE) else step) for step in REPEATED]
        if not any(edits):
            break
        edit.remove_unused(model)
        known = Known.of(model)
        shapes.infer(model, known.found)
    run(RemoveUnused())
    edit.toposort(model)
    return list(done.items())
