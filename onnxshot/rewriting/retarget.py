"""Bring a model that somebody quantized into the form of a target, with the same answers."""

from __future__ import annotations

from onnxshot.graph import Model, opset_upgrade
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.skip import Skip
from onnxshot.passes.base import Pass
from onnxshot.passes.convert_integer_types import ConvertIntegerTypes
from onnxshot.passes.move_qdq import MoveQdq
from onnxshot.passes.qoperator_to_qdq import OPSET, QOperatorToQdq
from onnxshot.passes.store_biases import StoreBiases
from onnxshot.targets.base import Target


def retarget(model: Model, target: Target) -> tuple[int, list[Skip]]:
    """How many edits it took, and the nodes that the target refuses or runs slower as they are, with what to do.

    Raises ModelError where operators on integers need a newer opset than the model can be raised to.
    """
    summed = sum(node.op in FORMS for _, node in model.walk())
    if summed:
        opset_upgrade.raise_opset(model, OPSET)
        what = f"{summed} operators on integers became float ones between Q/DQ pairs"
        model.notes.append(f"{what}: sums are rounded otherwise, answers may differ by a step")
    steps: tuple[Pass, ...] = (QOperatorToQdq(), ConvertIntegerTypes(target), MoveQdq(target))
    steps += (StoreBiases(),) if target.stores_biases else ()
    changes = [step.run(model) for step in steps]
    return sum(change.edits for change in changes), [skip for change in changes for skip in change.skips]
