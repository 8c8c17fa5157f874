"""Store biases of int8 Conv and Gemm as int32: float bias -> int32 bias, DequantizeLinear.

ONNX Runtime fuses a Conv or Gemm with a float bias from version 1.23 on only. Older versions run it in float and
dequantize its weight at each inference. The scale is x_scale * w_scale, rounded once to float32; with any other scale,
QGemm computes wrong sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Variable, edit, weights
from onnxshot.graph.ops import channel_axis, op_of
from onnxshot.maths.affine import MIN_SCALE
from onnxshot.maths.bias_quantization import BIAS_QMAX, bias_params, quantize_bias
from onnxshot.passes.base import Change

_LAYERS = ("Conv", "Gemm")


@dataclass(frozen=True, slots=True)
class StoreBiases:
    """Quantize the float biases of Conv and Gemm nodes whose input and weight are dequantized. The zero point is 0.

    Edits count the layers. Skipped: layers whose bias does not fit int32 at the scale x_scale * w_scale.
    """

    name: str = "store_biases"
    _made: dict[tuple[Constant, bytes], tuple[Constant, Constant]] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Store the biases."""
        change = Change()
        self._made.clear()
        taken = {node.name for _, node in model.walk()}
        for node in list(model.graph.nodes):
            slot = op_of(node).bias if node.op in _LAYERS else None
            if slot is None or slot >= len(node.inputs):
                continue
            bias = node.inputs[slot]
            scales = _scales(node) if isinstance(bias, Constant) else None
            if scales is None or not _fits_form(node, bias, scales[1].size):
                continue
            if not _has_room(np.asarray(weights.read(bias)), *scales):
                change.skip(node, "its bias does not fit int32 at the scales of its input and weight: it stays float")
                continue
            self._store(model, node, slot, scales, taken)
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _store(
        self,
        model: Model,
        node: Node,
        slot: int,
        scales: tuple[NDArray[Any], NDArray[Any]],
        taken: set[str],
    ) -> None:
        bias, params = node.inputs[slot], bias_params(*scales)
        values = np.asarray(weights.read(bias))
        key = (bias, params.scale.tobytes())
        if key not in self._made:
            self._made[key] = (
                # Short names: longer ones added 3 % to the file of a small network. The node keeps the bias's name.
                edit.add_constant(model, "bias", "", quantize_bias(values, *scales)),
                edit.add_constant(model, "bias", "scale", params.scale),
            )
        # If nothing else reads the bias and it is no graph output, the dequantized tensor takes its name.
        alone = len(bias.outputs) == 1 and not edit.is_output(model, bias)
        real = Variable(bias.name if alone else model.fresh(bias.name, "dequantized"))
        attrs = {"axis": 0} if params.scale.ndim else {}
        node.inputs[slot] = real
        name = model.fresh(bias.name, "dequantized") if real.name in taken else real.name
        model.graph.nodes.append(Node("DequantizeLinear", name, attrs, list(self._made[key]), [real]))


def _scales(node: Node) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """(scale of the input [], scale of the weight [] or [C] per output channel); None if the layer is not int8."""
    found = []
    for slot in (0, 1):
        dq = edit.producer(node.inputs[slot])
        if dq is None or dq.op != "DequantizeLinear" or isinstance(dq.inputs[0], Constant) != (slot == 1):
            return None
        scale = edit.constant_input(dq, 1)
        if scale is None or scale.dtype != np.float32:
            return None
        if scale.size > 1 and (slot == 0 or not _by_output(node, dq, scale)):
            return None
        found.append(scale.reshape(()) if scale.size == 1 else scale)
    return found[0], found[1]


def _by_output(node: Node, dq: Node, scale: NDArray[Any]) -> bool:
    """Whether the scale of a weight is per output channel, and not per block or input channel."""
    rank = len(dq.inputs[0].shape)
    wanted = channel_axis(node, 1, rank)
    return scale.ndim == 1 and wanted is not None and int(dq.attrs.get("axis", 1)) % rank == wanted % rank


def _fits_form(node: Node, bias: Constant, channels: int) -> bool:
    """Whether the bias is float32 [C], one value per output channel, and alpha and beta are 1."""
    if bias._values.dtype != np.float32 or len(bias.shape) != 1 or channels not in (1, bias.shape[0]):
        return False
    return all(node.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))


def _has_room(bias: NDArray[Any], x_scale: NDArray[Any], w_scale: NDArray[Any]) -> bool:
    """Whether each value fits int32 at the scale x_scale * w_scale, and this scale is a normal float32."""
    step = x_scale.astype(np.float64) * w_scale.astype(np.float64)
    if not (np.isfinite(bias).all() and (step >= MIN_SCALE).all() and (step <= np.finfo(np.float32).max).all()):
        return False
    return bool((np.abs(bias.astype(np.float64)) <= BIAS_QMAX * step * (1 + 2.0**-20)).all())
