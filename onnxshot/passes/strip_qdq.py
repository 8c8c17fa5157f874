"""Take every Q/DQ pair out: what is left is the float graph, with weights as they come back from 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class StripQdq:
    """Remove Q/DQ pairs on tensors and dequantize stored weights to float32 (DequantizeLinear-21, without blocks)."""

    name: str = "strip_qdq"

    def run(self, model: Model) -> Change:
        """Strip the pairs; edits counts the DequantizeLinear nodes removed, skips name what cannot be undone."""
        change = Change()
        for _, node in list(model.walk()):
            if node.op != "DequantizeLinear":
                continue
            source = node.inputs[0]
            maker = edit.producer(source)
            if isinstance(source, Constant):
                restored = _restore(model, node)
                if restored is None:
                    change.skip(node, "its scale is not constant, or is per block")
                    continue
                edit.replace_uses(model, node.outputs[0], restored)
                edit.remove(model, [node])
            elif maker is not None and maker.op == "QuantizeLinear":
                if not edit.bypass(model, node, maker.inputs[0]):
                    change.skip(node, "its input and its output are both named by the model's contract")
                    continue
            else:
                change.skip(node, "its input is made by an integer op")
                continue
            change.edits += 1
        edit.remove_unused(model)
        return change


def _restore(model: Model, node: Node) -> Constant | None:
    """real = (q - zero_point) * scale, along the axis attribute where the scale has one dimension."""
    q, scale = weights.read(node.inputs[0]), edit.constant_input(node, 1)
    zero = edit.constant_input(node, 2)
    if scale is None or scale.ndim > 1 or weights.elem_type(node.inputs[1]) not in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    ):
        return None
    real = dequantized(q, scale, zero, int(node.attrs.get("axis", 1)))
    return edit.add_constant(model, node.inputs[0].name, "float", real)


def dequantized(q: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int) -> NDArray[Any]:
    """(q - zero) * scale in the scale's own type. scale [] or [1], or [C] along `axis`; q [...] -> [...]."""
    shape = [1] * q.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[axis] = scale.size
    elif scale.ndim == 1:
        scale = scale.reshape(())
    centred = q.astype(np.float32)
    if zero is not None:
        centred -= zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    real = centred * (scale.reshape(shape) if scale.ndim else scale).astype(np.float32)
    return np.asarray(real.astype(scale.dtype))
