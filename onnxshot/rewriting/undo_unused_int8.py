"""Restore float weights of layers that ONNX Runtime does not fuse, because it dequantizes their weights at every run.

Passes and targets encode which forms ONNX Runtime fuses. This module checks the result: it lets ONNX Runtime optimize
the model and looks which weights it still dequantizes. Such a layer runs at 0.04x to 0.4x of float, so its weight is
stored in float again, and the plan records why.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from onnxshot.graph import Model, Node, edit
from onnxshot.graph.lean_model import LeanModel
from onnxshot.passes.keep_float import KeepFloat
from onnxshot.passes.strip_qdq import restore
from onnxshot.planning.plan import FLOAT, STATIC, Plan
from onnxshot.runtimes.ort_dequantized_weights import dequantized_weights
from onnxshot.targets.base import Target

REASON = "ONNX Runtime would not fuse it with its neighbours, and would dequantize its weight at every run"
_ROUNDS = 3  # a layer that becomes float may keep its neighbour from being fused


def undo_unused_int8(model: Model, plan: Plan, target: Target, teacher: LeanModel | None) -> Plan:
    """Restore the float weights of statically quantized layers that ONNX Runtime does not fuse.

    Args:
        model: The quantized model; it is edited in place.
        plan: Its plan.
        target: The target. Nothing is done unless ONNX Runtime is its only runtime and runs here.
        teacher: The float model that the plan was made for, with the original weights; None to dequantize the quantized
            ones.

    Returns:
        The plan, in which these layers are float.
    """
    if not target.runs_here or target.everywhere or not plan.labels(STATIC):
        return plan
    for _ in range(_ROUNDS):
        found = _layers(model, plan.labels(STATIC), dequantized_weights(model))
        if not found:
            break
        for node, slot in found:
            _restore(model, node, slot, _given(teacher, node, slot))
        labels = {node.label for node, _ in found}
        nodes = (replace(n, how=FLOAT, reason=REASON) if n.node in labels else n for n in plan.nodes)
        weighted = {name: planned for name, planned in plan.weights.items() if name not in labels}
        plan = replace(plan, nodes=tuple(nodes), weights=weighted)
        KeepFloat(labels, per_axis=not target.everywhere).run(model)
        edit.remove_unused(model)
        edit.toposort(model)
    return plan


def _layers(model: Model, labels: set[str], expanded: set[str]) -> list[tuple[Node, int]]:
    """(node, input slot) of each planned node that reads one of these constants through a DequantizeLinear."""
    found = []
    for node in model.graph.nodes:
        for slot, tensor in enumerate(node.inputs) if node.label in labels else ():
            dq = edit.producer(tensor)
            if dq is not None and dq.op == "DequantizeLinear" and dq.inputs[0].name in expanded:
                found.append((node, slot))
    return found


def _restore(model: Model, node: Node, slot: int, given: NDArray[Any] | None) -> None:
    """Replace a dequantized weight by the given float one, or by the dequantized values."""
    dq = edit.producer(node.inputs[slot])
    assert dq is not None
    shape = tuple(dq.inputs[0].shape)
    if given is not None and given.shape == shape:
        node.inputs[slot] = edit.add_constant(model, node.label, "weight", given)
    else:
        real = restore(model, dq)
        node.inputs[slot] = real if real is not None else node.inputs[slot]


def _given(teacher: LeanModel | None, node: Node, slot: int) -> NDArray[Any] | None:
    """The weight of the node of the same name in the float model; None if there is none."""
    if teacher is None:
        return None
    name = next((n.input[slot] for n in teacher.proto.graph.node if n.name == node.name and len(n.input) > slot), "")
    return teacher.array(name) if teacher.holds(name) else None
