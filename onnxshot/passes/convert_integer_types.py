"""Convert a quantized model between uint8 and int8: shift integers and zero points by 128. Results do not change.

real = (q - zero_point) * scale stays the same if q and zero_point are shifted by the same amount. What the target
cannot run after such shifts is reported as skipped and not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import op_of
from onnxshot.maths.affine import PerChannel, PerTensor, QuantParams, QuantScheme, quantize
from onnxshot.maths.quant_scheme import INT8, UINT8, QuantType
from onnxshot.passes.base import Change
from onnxshot.passes.strip_qdq import restore
from onnxshot.targets.base import Target
from onnxshot.wording import worded

_BYTES: dict[int, QuantType] = {TensorProto.UINT8: UINT8, TensorProto.INT8: INT8}


@dataclass(frozen=True, slots=True)
class ConvertIntegerTypes:
    """Convert 8-bit integers to the target's types, float weights before a Q to integers, and int32 biases to float.

    All runtimes accept float biases. If the target wants int32 biases, StoreBiases makes them with the right scale.

    Edits count tensors. Skipped, with what to do: scales, zero points or biases computed at run time; types, zero
    points and ranges that the target refuses; integers that other nodes read.

    Attributes:
        target: the rules of the runtime.
    """

    target: Target
    name: str = "convert_integer_types"
    _flipped: dict[Constant, Constant] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Convert the tensors, in subgraphs too."""
        change = Change()
        self._flipped.clear()
        change.edits = sum(_store(model, node) for _, node in model.walk() if node.op == "DequantizeLinear")
        edit.remove_unused(model)
        for _, node in list(model.walk()):
            if node.op == "DequantizeLinear" and isinstance(node.inputs[0], Constant):
                self._stored(model, node, change)
            elif node.op == "QuantizeLinear" and node.inputs:
                self._computed(model, node, change)
            elif node.op == "DynamicQuantizeLinear" and not self.target.dynamic:
                change.skip(node, f"{self.target.name} does not support scales computed at run time: {self._again()}")
        edit.remove_unused(model)
        return change

    def _stored(self, model: Model, dq: Node, change: Change) -> None:
        """Convert the integers of a weight or bias that this DequantizeLinear reads."""
        stored = dq.inputs[0]
        kind = weights.elem_type(stored)
        if kind == TensorProto.INT32:
            real = restore(model, dq)
            if real is None:
                change.skip(dq, "the scale of its int32 values is computed at run time")
                return
            edit.replace_uses(model, dq.outputs[0], real)
            change.edits += 1
        elif kind in _BYTES:
            weight = any(
                tensor is dq.outputs[0] and slot in op_of(user).weights
                for user in edit.consumers(dq.outputs[0])
                for slot, tensor in enumerate(user.inputs)
            )
            scheme = self.target.weight if weight else self.target.activation
            if _BYTES[kind].storage != scheme.dtype.storage:
                dq.inputs[0] = self._flip(model, stored)
                self._flip_zero(model, dq, kind)
                change.edits += 1
            if (self.target.activation.dtype.name, "uint8") not in self.target.types or not weight:
                self._refuse_zero(dq, scheme, change)  # else the target supports zero points of weights
            if scheme.dtype.bits < 8:
                self._refuse_range(dq, scheme, change)
        else:
            self._refuse_type(dq, kind, change)

    def _computed(self, model: Model, q: Node, change: Change) -> None:
        """Convert the integers that this QuantizeLinear produces, by changing zero points."""
        scheme, readers = self.target.activation, edit.consumers(q.outputs[0])
        zero = q.inputs[2] if len(q.inputs) > 2 and q.inputs[2].name else None
        kind = int(q.attrs.get("output_dtype", 0)) or TensorProto.UINT8  # QuantizeLinear-21
        kind = kind if zero is None else model.elem_type(zero)
        if kind not in _BYTES:
            self._refuse_type(q, kind, change)
            return
        if _BYTES[kind].storage != scheme.dtype.storage:
            if edit.is_output(model, q.outputs[0]) or any(n.op != "DequantizeLinear" for n in readers):
                change.skip(q, f"other nodes read its {_BYTES[kind].name} integers: {self._again()}")
                return
            if any(map(_has_computed_zero, (q, *readers))):
                change.skip(q, "its zero point is computed at run time")
                return
            q.attrs.pop("output_dtype", None)
            for node in (q, *readers):
                self._flip_zero(model, node, kind)
            for graph in model.graphs():
                graph.value_infos.pop(q.outputs[0].name, None)  # its recorded type is the old one
            change.edits += 1
        self._refuse_zero(q, scheme, change)
        scale = edit.constant_input(q, 1)
        if scale is not None and scale.size > 1 and not self.target.input_grids:
            change.skip(q, f"{self.target.name} takes one scale for all channels of its input: {self._again()}")

    def _flip(self, model: Model, stored: Constant) -> Constant:
        """The values in the other 8-bit type, shifted by 128. One new constant per constant."""
        if stored not in self._flipped:
            other = np.dtype(np.int8 if weights.elem_type(stored) == TensorProto.UINT8 else np.uint8)

            def flip() -> NDArray[Any]:
                return (np.asarray(weights.read(stored)).view(np.uint8) ^ np.uint8(128)).view(other)

            values = weights.ComputedValues(tuple(stored.shape), other, flip)
            self._flipped[stored] = edit.add_constant(model, stored.name, other.name, values)
        return self._flipped[stored]

    def _flip_zero(self, model: Model, node: Node, kind: int) -> None:
        """Shift the zero point of a Q or DQ by 128, and add one if it has none."""
        if len(node.inputs) > 2 and node.inputs[2].name:
            node.inputs[2] = self._flip(model, node.inputs[2])
            return
        zero = np.full(node.inputs[1].shape, *((-128, np.int8) if kind == TensorProto.UINT8 else (128, np.uint8)))
        made = edit.add_constant(model, node.inputs[1].name, "zero_point", zero)
        if len(node.inputs) > 2:
            node.inputs[2] = made
        else:
            node.inputs.append(made)

    # ------------------------------------------------------------------ what the target does not take

    def _again(self) -> str:
        """What to do about a skip."""
        how = f"[[complete=True]], for [[target={self.target.name}]]"
        return worded(f"quantize the float model, or this one with {how}")

    def _refuse_zero(self, node: Node, scheme: QuantScheme, change: Change) -> None:
        """Skip a zero point that a symmetric scheme does not allow."""
        zero = edit.constant_input(node, 2)
        if not scheme.is_symmetric or zero is None:
            return
        odd = zero.reshape(-1)[zero.reshape(-1) != scheme.midpoint]
        if odd.size:
            wanted = f"and {self.target.name} wants {scheme.midpoint}"
            change.skip(node, f"its zero point is {int(odd[0])} as {zero.dtype.name}, {wanted}: {self._again()}")

    def _refuse_range(self, dq: Node, scheme: QuantScheme, change: Change) -> None:
        """Skip weights outside the range of a type with fewer than 8 bits."""
        values = weights.read(dq.inputs[0])
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < scheme.dtype.qmin or high > scheme.dtype.qmax:
            limits = f"{scheme.dtype.qmin}..{scheme.dtype.qmax}"
            change.skip(dq, f"its weights are {low}..{high}, and {self.target.name} wants {limits}: {self._again()}")

    def _refuse_type(self, node: Node, kind: int, change: Change) -> None:
        """Skip a type that the target refuses."""
        reason = self.target.refused.get(TensorProto.DataType.Name(kind).lower())
        if reason is not None:
            change.skip(node, f"{reason}: {self._again()}")


def _has_computed_zero(node: Node) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2].name) and not isinstance(node.inputs[2], Constant)


def _store(model: Model, dq: Node) -> bool:
    """Replace float weight -> Q by the stored integers (QuantizeLinear-13). Returns whether it did."""
    q = edit.producer(dq.inputs[0])
    if q is None or q.op != "QuantizeLinear" or not isinstance(q.inputs[0], Constant):
        return False
    source, (scale, zero) = q.inputs[0], (edit.constant_input(q, slot) for slot in (1, 2))
    if scale is None or zero is None or zero.dtype not in (np.int8, np.uint8) or scale.ndim > 1:
        return False
    if weights.elem_type(source) != TensorProto.FLOAT or scale.dtype != np.float32 or q.attrs.get("block_size", 0):
        return False
    granularity = PerChannel(int(q.attrs.get("axis", 1))) if scale.size > 1 else PerTensor()
    params = QuantParams(QuantScheme(UINT8 if zero.dtype == np.uint8 else INT8, granularity=granularity), scale, zero)

    def round_() -> NDArray[Any]:
        return quantize(np.asarray(weights.read(source)), params)

    values = weights.ComputedValues(tuple(source.shape), zero.dtype, round_)
    dq.inputs[0] = edit.add_constant(model, source.name, "quantized", values)
    return True
