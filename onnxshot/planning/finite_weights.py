"""Refuse weights that hold NaN or infinity: no scale covers them, and every comparison would be NaN."""

from __future__ import annotations

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, Model
from onnxshot.graph.weight_facts import facts_of
from onnxshot.planning.plan import Plan


def refuse_not_finite(model: Model, plan: Plan) -> None:
    """Check each weight that the plan quantizes. Each is read once and not kept in memory.

    Raises:
        ModelError: a weight is not finite; the message names the weight and its node.
    """
    seen: set[str] = set()
    for node in model.graph.nodes:
        planned = plan.weights.get(node.label)
        weight = node.inputs[planned.slot] if planned is not None else None
        if not isinstance(weight, Constant) or weight.name in seen or weight.name in plan.kept.weights:
            continue
        seen.add(weight.name)
        if not facts_of(weight).finite:
            what = f"weight {weight.name!r} of node {node.label!r} ({node.op}) holds NaN or infinity"
            raise ModelError(what, "export the model again, or leave its op out with [[exclude=OP]]")
