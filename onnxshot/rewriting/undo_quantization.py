"""Take a model that is quantized already back to float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxshot.errors import UsageError
from onnxshot.graph import Model, Node, opset_upgrade
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.load import copy_of
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.passes.qoperator_to_qdq import OPSET, QOperatorToQdq
from onnxshot.passes.strip_qdq import PAIR, StripQdq
from onnxshot.planning.make_plan import already_quantized
from onnxshot.planning.trained_scales import NOTHING, Trained, read_pairs
from onnxshot.rewriting.prepare import fold_constants


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
    fold_constants(model)
    if any(node.op in FORMS for _, node in model.walk()):
        opset_upgrade.raise_opset(model, OPSET)
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
