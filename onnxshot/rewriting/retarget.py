"""Convert a quantized model to the integer types and the form that another target needs, without new calibration."""

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
    """Convert a quantized model to a target's form, with the same scales.

    Integer operators such as QLinearConv become float operators between Q/DQ pairs. Outputs may then differ by one
    quantization step, because sums are rounded differently.

    Args:
        model: The quantized model; it is edited in place.
        target: The target.

    Returns:
        (number of edits, nodes that the target rejects or runs more slowly as they are, with what to do).

    Raises:
        ModelError: Integer operators need a newer opset than the model can be raised to.
    """
    summed = sum(node.op in FORMS for _, node in model.walk())
    if summed:
        opset_upgrade.raise_opset(model, OPSET)
        what = f"{summed} integer operators became float operators between Q/DQ pairs"
        model.notes.append(f"{what}: sums are rounded differently, so outputs may differ by one step")
    steps: tuple[Pass, ...] = (QOperatorToQdq(), ConvertIntegerTypes(target), MoveQdq(target))
    steps += (StoreBiases(),) if target.stores_biases else ()
    changes = [step.run(model) for step in steps]
    return sum(change.edits for change in changes), [skip for change in changes for skip in change.skips]
