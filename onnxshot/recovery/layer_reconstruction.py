"""Layer-wise reconstruction: correct the biases of a quantized model and learn how its weights are rounded.

The float model is the teacher, the quantized model the student. Layers are repaired in order. Each one reads its inputs
from the student, which include the error of all earlier layers after their repair, and learns to give the teacher's
outputs. This is the asymmetric form of GPTAQ (Li et al. 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxshot.execution.activation import Activation, Activations
from onnxshot.execution.layer_rows import Feeds, LayerOutputs, MatrixForm, layer_outputs, product, samples_that_fit
from onnxshot.execution.layer_walk import Walk
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.bias_quantization import bias_safe_scale
from onnxshot.maths.gptq import round_weights

HELD = 192 << 20
"""Bytes of 8-bit tensors that the student may hold; they limit the number of samples."""
_BIAS_ROWS, _WEIGHT_ROWS = 320, 8192  # values of each output channel that a layer is repaired on
_BLOCK = 16 << 20  # bytes of a layer's inputs as float32 that are in memory at a time
_MOST_INPUTS = 8192  # inputs per output: with more, second moments take too much memory, and weights stay as rounded


@dataclass(frozen=True, eq=False)
class Repair:
    """What changes at a layer.

    Attributes:
        bias: the new bias, float32; None to keep it.
        weight: the new quantized weight, int8 of the old shape; None to keep it.
    """

    bias: NDArray[np.float32] | None = None
    weight: NDArray[Any] | None = None


def reconstruct(
    reference: ModelProto,
    candidate: ModelProto,
    layers: Sequence[str],
    feeds: Feeds,
    *,
    rounding: bool,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Repair]:
    """Learn repairs of the layers of a quantized model.

    Memory: both models, HELD bytes of tensors, and for one layer at a time 8192 rows of 8-bit inputs, the outputs and
    the second moments.

    Args:
        reference: the float model, the teacher.
        candidate: the quantized model, the student; it is not changed.
        layers: names of Conv, Gemm and MatMul nodes of both models with int8 weights in the candidate. Those that
            cannot be repaired are left out of the result.
        feeds: samples to learn from.
        rounding: learn the rounding of weights too, not only biases.
        threads: of the sessions.
        progress: called after each layer.

    Returns:
        Name of the layer -> its repair.

    Raises:
        ModelError: a model does not run.
    """
    feeds = feeds[: _affordable(candidate, layers, feeds)]
    student = Walk(candidate, feeds, threads)
    activations = Activations(reference)
    makers = {name: node for node in candidate.graph.node for name in node.output}
    originals = {node.name: node for node in reference.graph.node if node.name in layers}
    constants = {t.name: t for t in reference.graph.initializer}
    known = [(node, _Layer.of(node, makers, student)) for node in candidate.graph.node if node.name in originals]
    ready = [(originals[node.name], layer) for node, layer in known if layer is not None]
    rows = _WEIGHT_ROWS if rounding else _BIAS_ROWS
    share = -(-rows // len(feeds))
    outputs_of = layer_outputs(reference, ready, feeds, [share] * len(ready), threads)
    found = {}
    for done, ((node, layer), outputs) in enumerate(zip(ready, outputs_of, strict=True), 1):
        weight = numpy_helper.to_array(constants[node.input[1]]) if rounding and node.input[1] in constants else None
        repair = layer.repair(student, outputs, share, weight, activations.after(node.output[0]))
        for name, values in ((layer.bias, repair.bias), (layer.weight, repair.weight)):
            if values is not None:
                student.set(name, values)
        found[node.name] = repair
        if progress is not None:
            progress("repairing", done, len(ready))
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the candidate: its form of product, the names of its input and constants, and its output channels."""

    form: MatrixForm
    input: str
    weight: str
    scale: str
    bias: str
    outputs: int

    @classmethod
    def of(cls, node: NodeProto, makers: Mapping[str, NodeProto], student: Walk) -> _Layer | None:
        """Describe a node; None where it cannot be repaired."""
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        maker = makers.get(node.input[1])
        if maker is None or maker.op_type != "DequantizeLinear" or student.params(node.input[1]) is not None:
            return None
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if student.params(node.input[0]) is None or attrs.get("transA", 0):
            return None
        if attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
            return None
        bias = node.input[2] if len(node.input) > 2 else ""
        outputs = student.constant(maker.input[1]).size
        found = cls(MatrixForm(node.op_type, attrs), node.input[0], maker.input[0], maker.input[1], bias, outputs)
        weight = student.constant(maker.input[0])
        if weight.dtype != np.int8 or (weight.ndim != 2 and node.op_type != "Conv"):
            return None
        table = found.form.table(weight)
        return replace(found, outputs=table.shape[0] * table.shape[1]) if table.shape[2] <= _MOST_INPUTS else None

    def repair(
        self, student: Walk, wanted: LayerOutputs, share: int, weight: NDArray[Any] | None, behind: Activation
    ) -> Repair:
        """Learn the repair from the layer's inputs in the student and its outputs in the teacher."""
        stored, scale = student.constant(self.weight), student.constant(self.scale).astype(np.float64).reshape(-1)
        integers = self.form.table(stored).astype(np.float64)  # [G, O, K]
        scales = np.broadcast_to(scale, self.outputs).reshape(integers.shape[:2])
        rows = self._read(student, wanted, share)
        rounded = None
        if weight is not None:
            most = int(np.abs(integers).max())  # 7-bit weights are stored as int8 too
            moments = rows.moments(centred=bool(self.bias))
            integers = round_weights(self.form.table(weight), moments, scales, (-most, most))
            rounded = self.form.stored(integers, stored)
        if not self.bias:
            return Repair(None, rounded)
        table = (integers * scales[:, :, None]).astype(np.float32)
        got = rows.products(table)
        old = student.constant(self.bias)
        learned = corrected_bias(wanted.values, got, old.reshape(-1), behind, wanted.starts)
        bias = learned.astype(np.float32).reshape(old.shape)
        params = student.params(self.input)
        assert params is not None
        flat = scales.reshape(-1)
        fits = np.array_equal(bias_safe_scale(flat, params[0], bias.reshape(-1)), flat)
        return Repair(bias if fits else None, rounded)

    def _read(self, student: Walk, wanted: LayerOutputs, share: int) -> _Rows:
        """Read the layer's inputs at the positions of the wanted outputs."""
        params = student.params(self.input)
        assert params is not None
        scale, zero_point = params
        shape = student.constant(self.weight).shape
        stored = self.form.read(student.values(self.input), wanted.sizes, share, shape, zero_point.reshape(()))
        return _Rows(stored, np.float32(scale), np.float32(zero_point))


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Inputs of a layer: integers q of shape [G, N, K], which stand for the values scale * (q - zero_point).

    The float values are computed _BLOCK bytes at a time: those of a 3x3 depthwise Conv are nine times its input.
    """

    stored: NDArray[Any]
    scale: np.float32
    zero_point: np.float32

    def moments(self, *, centred: bool) -> NDArray[np.float64]:
        """Second moments of the values, [G, K, K] in float64, about their means if `centred`, else about zero."""
        groups, rows, columns = self.stored.shape
        centre = self.stored.mean(axis=1, keepdims=True, dtype=np.float64) if centred else self.zero_point
        total: NDArray[np.float64] = np.zeros((groups, columns, columns))
        for block in self._blocks():
            block -= np.asarray(centre, np.float32)
            total += block.transpose(0, 2, 1) @ block
        total *= float(self.scale) ** 2 / rows
        return total

    def products(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply the values by a weight of shape [G, O, K]; the result has shape [N, G * O]."""
        found = []
        for block in self._blocks():
            block -= self.zero_point
            block *= self.scale
            found.append(product(block, table))
        return np.concatenate(found)

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the integers as float32, some rows at a time, in shape [G, n, K]."""
        groups, rows, columns = self.stored.shape
        step = max(1, _BLOCK // (4 * groups * columns))
        for start in range(0, rows, step):
            yield self.stored[:, start : start + step].astype(np.float32)


def _affordable(model: ModelProto, layers: Collection[str], feeds: Feeds) -> int:
    """How many samples fit into HELD bytes, at one byte per value that the student holds of a sample."""
    return samples_that_fit(model, layers, feeds, HELD)
