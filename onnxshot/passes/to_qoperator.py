"""Fuse Q/DQ into QOperator form: DQ, DQ -> Conv or MatMul -> Q becomes QLinearConv or QLinearMatMul.

For runtimes that do not fuse Q/DQ pairs themselves. Only standard ONNX operators are used: other int8 nodes keep their
pairs. QLinearConv-10 takes an int32 bias with the scale x_scale * w_scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.maths.bias_quantization import quantize_bias
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class ToQOperator:
    """Fuse DQ, DQ -> Conv or MatMul -> [Relu or Clip that the saturation of Q replaces] -> Q into one operator.

    Edits count the operators. Skipped: products whose bias is computed, or without a QuantizeLinear right after them.
    """

    name: str = "to_qoperator"

    def run(self, model: Model) -> Change:
        """Fuse the operators of the top-level graph."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op not in ("Conv", "MatMul"):
                continue
            dqs = [edit.producer(t) for t in node.inputs[:2]]
            if any(d is None or d.op != "DequantizeLinear" for d in dqs):
                continue
            if any(t.name and not isinstance(t, Constant) for t in node.inputs[2:]):
                change.skip(node, "its bias is computed at run time")
                continue
            q = quantizer_after(model, node)
            if q is None:
                change.skip(node, "no QuantizeLinear follows it directly")
                continue
            x, w = (d for d in dqs if d is not None)
            _fuse(model, node, x, w, q)
            change.edits += 1
        edit.remove_unused(model)
        edit.toposort(model)
        return change


def quantizer_after(model: Model, node: Node) -> Node | None:
    """The Q that is the only reader of the node, directly or after a Relu or Clip that its saturation replaces."""
    user = edit.only_consumer(model, node.outputs[0])
    if user is not None and user.op in ("Relu", "Clip"):
        low, high = _limits(user)
        q = edit.only_consumer(model, user.outputs[0])
        if q is None or q.op != "QuantizeLinear":
            return None
        scale, zero = edit.constant_input(q, 1), edit.constant_input(q, 2)
        if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
            return None
        info = np.iinfo(zero.dtype)
        least = (info.min - int(zero.reshape(()))) * np.float32(scale.reshape(()))
        most = (info.max - int(zero.reshape(()))) * np.float32(scale.reshape(()))
        return q if least >= low and most <= high else None
    return user if user is not None and user.op == "QuantizeLinear" else None


def _limits(node: Node) -> tuple[float, float]:
    return (0.0, float("inf")) if node.op == "Relu" else edit.clip_limits(node)


def _fuse(model: Model, node: Node, x: Node, w: Node, q: Node) -> None:
    inputs = [*x.inputs[:3], *w.inputs[:3], q.inputs[1], q.inputs[2]]
    if node.op == "Conv" and len(node.inputs) > 2 and node.inputs[2].name:
        bias = node.inputs[2]
        x_scale, w_scale = weights.read(x.inputs[1]), weights.read(w.inputs[1])
        steps = quantize_bias(np.asarray(weights.read(bias)), x_scale, w_scale)
        inputs.append(edit.add_constant(model, bias.name, "quantized", steps))
    out = q.outputs[0]
    edit.remove(model, [q])
    edit.add_node(
        model,
        "QLinearConv" if node.op == "Conv" else "QLinearMatMul",
        inputs,
        base=node.label,
        suffix="quantized",
        outputs=[out],
        attrs=dict(node.attrs) if node.op == "Conv" else {},
    )
