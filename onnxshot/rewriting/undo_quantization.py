"""Convert a quantized input model back to float: remove Q/DQ pairs and integer operators, and read their scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxshot.errors import UsageError
from onnxshot.graph import Model, Node, opset_upgrade
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.integer_weights import weights_in_bytes
from onnxshot.graph.load import copy_of
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.passes.qoperator_to_qdq import OPSET, QOperatorToQdq
from onnxshot.passes.strip_qdq import PAIR, StripQdq
from onnxshot.planning.make_plan import already_quantized
from onnxshot.planning.trained_scales import NOTHING, Trained, read_pairs
from onnxshot.rewriting.prepare import fold_constants
from onnxshot.wording import counted


def to_float(model: Model, *, complete: bool, requantize: bool) -> Trained:
    """Convert a quantized model back to float. A model that is not quantized is left unchanged.

    Args:
        model: The model; it is edited in place.
        complete: Remove the Q/DQ pairs but return their scales, with which the model is then quantized further
            (`--complete`). Integer operators that are no pairs stay.
        requantize: Remove all quantization (`--requantize`).

    Returns:
        The scales, zero points and integers that the model brought, if `complete`; else `NOTHING`.

    Raises:
        UsageError: The model is quantized and neither option is given, both are given, or a node cannot be converted.
    """
    if complete and requantize:
        raise UsageError("[[complete=True]] keeps the scales that [[requantize=True]] removes", "give one of them")
    found, stored = already_quantized(model), weights_in_bytes(model)
    if (found or stored) and not complete and not requantize:
        raise UsageError(f"the model is quantized already: {_what(found, stored)}", _ways_out(model, pairs=bool(found)))
    if stored:
        count = counted(len(stored), "weight")
        model.notes.append(f"{count} of the input, stored as integers, became floats again before quantizing")
    if not found:
        return NOTHING
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
        model.notes.append(f"{edits} Q/DQ pairs and integer operators of the input were removed before quantizing")
    if kept:
        model.notes.append(f"{kept} integer operators of the input have no Q/DQ pairs and stay as they are")
    return trained


def _what(found: Sequence[Node], stored: Sequence[str]) -> str:
    """What says that a model is quantized: nodes, or weights that are stored as integers."""
    if found:
        return f"{counted(len(found), 'node')} such as {found[0].label!r} ({found[0].op})"
    return f"{counted(len(stored), 'weight')} such as {stored[0]!r} {'is' if len(stored) == 1 else 'are'} integers"


def _named(left: Sequence[Node], names: Mapping[str, str]) -> str:
    """The number of nodes, and one by its name and operator in the file. `names`: node name -> operator there."""
    one = left[0]
    own = max((name for name in names if f"{one.label}_".startswith(f"{name}_")), key=len, default="")
    return f"{counted(len(left), 'node')} such as {own or one.label!r} ({names.get(own, one.op)})"


def _ways_out(model: Model, *, pairs: bool) -> str:
    """Advice for a model that is quantized already: the options that work on a copy of it.

    pairs: whether it has nodes whose scales can be kept.
    """
    refusals = {}
    for way in ("complete", "requantize"):
        try:
            to_float(copy_of(model), complete=way == "complete", requantize=way == "requantize")
        except UsageError as refused:
            refusals[way] = refused.message
    ways = {
        "complete": "quantize with [[complete=True]] to keep its scales and quantize the rest",
        "requantize": "quantize with [[requantize=True]] to go back to float first",
    }
    works = [text for way, text in ways.items() if way not in refusals and (pairs or way != "complete")]
    advice = ", or ".join(["start from the float model", *works])
    return f"{advice}: {refusals['requantize']}" if "requantize" in refusals else advice
