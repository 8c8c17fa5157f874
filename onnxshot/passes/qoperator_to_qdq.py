"""Convert QOperator form to Q/DQ: QLinearConv, QLinearMatMul, QGemm ... -> DequantizeLinear -> op -> QuantizeLinear.

Products then accumulate in float instead of integers, so results may differ by one quantization step at ties. Operators
that only move integers give the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Tensor, Variable, edit
from onnxshot.graph.integer_ops import FORMS, Form
from onnxshot.graph.ops import channel_axis, moves_exactly
from onnxshot.passes.base import Change

OPSET = 13  # first opset whose DequantizeLinear has per-channel scales


_NOT_OF_FLOATS = ("channels_last", "opset")  # attributes that the float operators do not have


@dataclass(frozen=True, slots=True)
class QOperatorToQdq:
    """Replace the operators of `FORMS`, and those that move integers, by float operators with Q/DQ. Needs opset 13.

    Edits count the operators. Skipped: operators whose scale, zero point or bias is computed; channels-last operators
    of unknown rank; a bias with more or fewer values than scales; Softmax from before opset 13.
    """

    name: str = "qoperator_to_qdq"

    def run(self, model: Model) -> Change:
        """Replace the operators of the top-level graph."""
        change = Change()
        _channels_first(model)
        for node in list(model.graph.nodes):
            maker = edit.producer(node.inputs[0]) if node.inputs else None
            if node.op in FORMS:
                reason = _skip_reason(node, FORMS[node.op])
                if reason:
                    change.skip(node, reason)
                    continue
                _to_qdq(model, node, FORMS[node.op])
            elif maker is not None and maker.op == "QuantizeLinear" and moves_exactly(node) and node.op != "Pad":
                _wrap(model, node, maker)
            else:
                continue
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _channels_first(model: Model) -> None:
    """Add Transposes around channels-last operators, which ONNX Runtime's optimizer writes."""
    found = []
    for node in model.graph.nodes:
        rank = _rank_of_last(model, node)
        if rank is not None:
            found.append((node, rank))
    for node, rank in found:
        node.attrs.pop("channels_last", None)
        if node.op == "NhwcMaxPool":
            node.op, node.domain = "MaxPool", None
        before, after = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
        turned = edit.add_node(model, "Transpose", [node.inputs[0]], base=node.label, attrs={"perm": before})
        node.inputs[0] = turned.outputs[0]
        out, node.outputs[0] = node.outputs[0], Variable(model.fresh(node.label, "first"))
        edit.add_node(model, "Transpose", [node.outputs[0]], base=node.label, outputs=[out], attrs={"perm": after})
    if found:
        edit.toposort(model)


def _rank_of_last(model: Model, node: Node) -> int | None:
    """Rank of the input of a channels-last operator; None for other operators, and if it is unknown."""
    if node.op != "NhwcMaxPool" and not (node.op in FORMS and node.attrs.get("channels_last", 0)):
        return None
    if node.op == "QLinearConv":
        return len(node.inputs[3].shape or ()) or None
    if "kernel_shape" in node.attrs:
        return len(node.attrs["kernel_shape"]) + 2
    return len(model.shape(node.inputs[0]) or ()) or None


def _operands(node: Node, form: Form) -> list[int]:
    return list(range(2, len(node.inputs), 3) if form.data is None else form.data)


def _skip_reason(node: Node, form: Form) -> str:
    """Skip reason of the operator; empty if it has a float form."""
    known = [slot for first in _operands(node, form) for slot in (first + 1, first + 2)]
    known += [form.result, form.result + 1, *([form.bias] if form.bias is not None else [])]
    if any(i < len(node.inputs) and node.inputs[i].name and edit.constant_input(node, i) is None for i in known):
        return "its scale, zero point or bias is computed at run time"
    if node.attrs.get("channels_last", 0):
        return "its channels come last, and its rank is unknown"
    if form.bias is not None and len(node.inputs) > form.bias and node.inputs[form.bias].name:
        bias = edit.constant_input(node, form.bias)
        sizes = [s.size for first in _operands(node, form) if (s := edit.constant_input(node, first + 1)) is not None]
        if bias is not None and any(size not in (1, bias.size) for size in sizes):
            return "its numbers of scales and of bias values differ"
    # Up to opset 12, Softmax flattens its input.
    return "it is a Softmax from before opset 13" if node.attrs.get("opset", OPSET) < OPSET else ""


def _to_qdq(model: Model, node: Node, form: Form) -> None:
    attrs = {key: value for key, value in node.attrs.items() if key not in _NOT_OF_FLOATS}
    made = Node(form.op, node.name, attrs, [node.inputs[i] for i in _operands(node, form)])
    scales = []
    for slot, first in enumerate(_operands(node, form)):
        stored, scale = node.inputs[first], edit.constant_input(node, first + 1)
        assert scale is not None
        scales.append(scale.astype(np.float64))
        axis = channel_axis(made, slot, len(stored.shape or ())) if scale.size > 1 else None
        made.inputs[slot] = _dequantized(model, node.inputs[first : first + 3], node, axis)
    bias = edit.constant_input(node, form.bias) if form.bias is not None else None
    if bias is not None and form.bias is not None:
        step = scales[0] * scales[1] * node.attrs.get("alpha", 1.0)
        real = (bias * step).astype(np.float32)
        made.inputs.append(edit.add_constant(model, node.inputs[form.bias].name, "float", real))
    result, out = node.inputs[form.result : form.result + 2], node.outputs[0]
    edit.remove(model, [node])
    if not result or not result[0].name:  # a QGemm without an output scale produces floats
        made.outputs.append(out)
    else:
        made.outputs.append(Variable(model.fresh(node.label, "float")))
        edit.add_node(model, "QuantizeLinear", [made.outputs[0], *result], base=node.label, outputs=[out])
    model.graph.nodes.append(made)


def _wrap(model: Model, node: Node, maker: Node) -> None:
    """Add DQ before and Q after a node that moves integers, with the scale of the Q that made them (`maker`)."""
    pair = maker.inputs[1:3]
    node.inputs[0] = _dequantized(model, [maker.outputs[0], *pair], node, None)
    for i, out in enumerate(node.outputs if node.op == "Split" else node.outputs[:1]):
        node.outputs[i] = Variable(model.fresh(out.name, "float"))
        edit.add_node(model, "QuantizeLinear", [node.outputs[i], *pair], base=out.name, outputs=[out])


def _dequantized(model: Model, stored: list[Tensor], node: Node, axis: int | None) -> Tensor:
    attrs = {} if axis is None else {"axis": axis}
    given = [tensor for tensor in stored if tensor.name]
    return edit.add_node(model, "DequantizeLinear", given, base=node.label, attrs=attrs).outputs[0]
