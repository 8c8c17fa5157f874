"""Layer-wise reconstruction: correct the biases of a quantized model and learn how its weights are rounded.

The float model is the teacher, the quantized model the student. Layers are repaired in order. Each one reads its inputs
from the student, which include the error of all earlier layers after their repair, and learns to give the teacher's
outputs. This is the asymmetric form of GPTAQ (Li et al. 2025, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshot import memory
from onnxshot.execution.activation import Activation, Activations
from onnxshot.execution.layer_graph import LayerGraph
from onnxshot.execution.layer_rows import Feeds, LayerOutputs, MatrixForm, layer_outputs
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.bias_quantization import bias_safe_scale
from onnxshot.maths.gptq import round_weights

_BIAS_ROWS, _WEIGHT_ROWS = 320, 8192  # positions of the output that a layer is repaired on, at most
_BEFORE, _CORRECTION = "/before_correction", "/correction"
_BLOCK = 16 << 20  # bytes of a layer's inputs as float32 that are in memory at a time
_BIAS_SAMPLES, _WEIGHT_SAMPLES = 32, 48  # more were not seen to help
_ROWS_PER_INPUT, _LEAST_ROWS = 48, 2048  # the second moments of few inputs need fewer rows
_MOMENT_BYTES = 40  # that rounding takes for each of K * K second moments, and
_MOMENTS_SHARE = 4  # the share of the budget that it may take; inputs of layers with more are rounded in blocks


@dataclass(frozen=True, eq=False)
class Repair:
    """What changes at a layer.

    Attributes:
        bias: the new bias, float32; None to keep it.
        weight: the new quantized weight, int8 of the old shape; None to keep it.
        blocks: in how many blocks of inputs the weight was rounded, each for itself; 1 where all were rounded together.
    """

    bias: NDArray[np.float32] | None = None
    weight: NDArray[Any] | None = None
    blocks: int = 1


def reconstruct(
    reference: ModelProto | LeanModel,
    candidate: ModelProto | LeanModel,
    layers: Sequence[str],
    feeds: Feeds,
    *,
    rounding: bool,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Repair]:
    """Learn repairs of the layers of a quantized model.

    Memory: what two walks hold (see `Walk`), the outputs of some layers up to `memory.waiting_bytes()`, and for one
    layer at a time 8192 rows of 8-bit inputs and the second moments.

    Args:
        reference: the float model, the teacher.
        candidate: the quantized model, the student; it is not changed.
        layers: names of Conv, Gemm and MatMul nodes of both models with int8 weights in the candidate. Those that
            cannot be repaired are left out of the result.
        feeds: samples to learn from; the first 32 for biases, 48 for weights.
        rounding: learn the rounding of weights too, not only biases.
        threads: of the sessions.
        progress: called after each layer.

    Returns:
        Name of the layer -> its repair. The bias that an Add adds to a MatMul is the repair of that Add.

    Raises:
        ModelError: a model does not run.
    """
    feeds = feeds[: _WEIGHT_SAMPLES if rounding else _BIAS_SAMPLES]
    teacher, quantized = LeanModel.of(reference), LeanModel.of(candidate)
    originals = {node.name: node for node in teacher.proto.graph.node if node.name}
    graph = LayerGraph.of(quantized)
    named = [node for node in quantized.proto.graph.node if node.name in layers and node.name in originals]
    ready = [(node.name, layer) for node in named if (layer := _Layer.of(node, graph)) is not None]
    ready = [(name, layer if layer.adds in ("", *originals) else replace(layer, bias="")) for name, layer in ready]
    found = {name: Repair() for name, _ in ready}
    learned = [(name, layer) for name, layer in ready if rounding or layer.bias]
    if not learned:
        return found
    student = Walk(_with_corrections(quantized, [layer for _, layer in learned]), feeds, threads)
    activations = Activations(teacher.proto)
    shares = {name: -(-layer.rows(rounding=rounding) // len(feeds)) for name, layer in learned}
    compared = {name: (originals[layer.adds or name], layer) for name, layer in learned if layer.compares}
    outputs_of = layer_outputs(teacher, list(compared.values()), feeds, [shares[name] for name in compared], threads)
    for done, (name, layer) in enumerate(learned, 1):
        outputs = next(outputs_of) if layer.compares else None
        source = originals[name].input[1]
        weight = teacher.array(source) if rounding and teacher.holds(source) else None
        behind = activations.after(originals[layer.adds or name].output[0])
        repair = layer.repair(student, outputs, shares[name], weight, behind)
        if layer.adds and repair.bias is not None:
            found[layer.adds], repair = Repair(repair.bias), replace(repair, bias=None)
        found[name] = repair
        if progress is not None:
            progress("repairing", done, len(learned))
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the candidate: its form of product, the names of its tensors and constants, and its output channels.

    Attributes:
        output: name of the layer's output, with its bias.
        bias: name of the constant; "" without one of a value per output channel.
        adds: name of the Add behind a MatMul that adds the bias; else "".
        params: scale and zero point of the input.
    """

    form: MatrixForm
    input: str
    output: str
    weight: str
    scale: str
    bias: str
    adds: str
    outputs: int
    inputs: int
    params: tuple[NDArray[Any], NDArray[Any]]

    @property
    def compares(self) -> bool:
        """Whether outputs of the teacher are needed: for a bias, or to know the sizes of a Conv's output."""
        return bool(self.bias) or self.form.op == "Conv"

    def rows(self, *, rounding: bool) -> int:
        """Positions of the output that it is repaired on, over all samples."""
        return min(_WEIGHT_ROWS, max(_ROWS_PER_INPUT * self.inputs, _LEAST_ROWS)) if rounding else _BIAS_ROWS

    @property
    def before(self) -> str:
        """Name of the output before the bias is corrected."""
        return self.output + _BEFORE

    @property
    def correction(self) -> str:
        """Name of the constant that corrects the bias in the student."""
        return self.output + _CORRECTION

    @classmethod
    def of(cls, node: NodeProto, graph: LayerGraph) -> _Layer | None:
        """Describe a node; None where it cannot be repaired."""
        model = graph.model
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        given, stored = (graph.makers.get(name) for name in node.input[:2])
        if any(maker is None or maker.op_type != "DequantizeLinear" for maker in (given, stored)):
            return None
        assert given is not None
        assert stored is not None
        if model.holds(given.input[0]) or not all(map(model.holds, (*given.input[1:3], *stored.input))):
            return None
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
            return None
        kind, shape = model.kind_of(stored.input[0])
        if kind != TensorProto.INT8 or (len(shape) != 2 and node.op_type != "Conv"):
            return None
        form = MatrixForm(node.op_type, attrs)
        table = form.table(np.broadcast_to(np.int8(0), shape))
        outputs, inputs = table.shape[0] * table.shape[1], table.shape[2]
        bias, output, adds = graph.bias_of(node, outputs)
        scale, zero_point = (model.array(name) for name in given.input[1:3])
        return cls(
            form,
            node.input[0],
            output,
            stored.input[0],
            stored.input[1],
            bias,
            adds,
            outputs,
            inputs,
            (scale, zero_point),
        )

    def repair(
        self, student: Walk, wanted: LayerOutputs | None, share: int, weight: NDArray[Any] | None, behind: Activation
    ) -> Repair:
        """Learn the repair from the layer's inputs in the student and its outputs in the teacher, and put it there.

        wanted: the outputs in the teacher, where they are compared.
        """
        scale = student.constant(self.scale).astype(np.float64).reshape(-1)
        rounded, blocks = None, 1
        if weight is not None:
            sizes = [()] * len(student.values(self.input)) if wanted is None else wanted.sizes
            rounded, blocks = self._rounded(student, sizes, share, weight, scale)
            student.set(self.weight, rounded)
        if not self.bias or wanted is None:
            return Repair(None, rounded, blocks)
        old = student.constant(self.bias)
        given = [self.form.output_rows(y, share, number)[0] for number, y in enumerate(student.values(self.before))]
        got = np.concatenate(given) - old.reshape(-1)
        learned = corrected_bias(wanted.values, got, old.reshape(-1), behind, wanted.starts)
        bias = learned.astype(np.float32).reshape(old.shape)
        flat = np.broadcast_to(scale, self.outputs)
        if not np.array_equal(bias_safe_scale(flat, self.params[0], bias.reshape(-1)), flat):
            return Repair(None, rounded, blocks)
        change = student.constant(self.correction)
        student.set(self.correction, (bias - old).reshape(change.shape))
        return Repair(bias, rounded, blocks)

    def _rounded(
        self,
        student: Walk,
        sizes: Sequence[tuple[int, ...]],
        share: int,
        weight: NDArray[Any],
        scale: NDArray[np.float64],
    ) -> tuple[NDArray[Any], int]:
        """The weight rounded for the layer's inputs in the student, and in how many blocks of inputs."""
        stored = student.constant(self.weight)
        integers, floats = self.form.table(stored), self.form.table(weight)  # [G, O, K]
        scales = np.broadcast_to(scale, self.outputs).reshape(integers.shape[:2])
        most = int(np.abs(integers).max())  # 7-bit weights are stored as int8 too
        rows = self._read(student, sizes, share, stored.shape)
        afford = math.isqrt(memory.budget() // (_MOMENTS_SHARE * _MOMENT_BYTES * len(integers)))
        blocks = -(-self.inputs // max(afford, 1))
        found = np.empty_like(integers)
        for columns in np.array_split(np.arange(self.inputs), blocks):
            part = slice(int(columns[0]), int(columns[-1]) + 1)
            moments = rows.moments(part, centred=bool(self.bias))
            found[:, :, part] = round_weights(floats[:, :, part], moments, scales, (-most, most))
        return self.form.stored(found, stored), blocks

    def _read(self, student: Walk, sizes: Sequence[tuple[int, ...]], share: int, shape: Sequence[int]) -> _Rows:
        """Read the layer's inputs at the positions of the wanted outputs, whose spatial sizes are given."""
        scale, zero_point = self.params
        stored = self.form.read(student.values(self.input), sizes, share, shape, zero_point.reshape(()))
        return _Rows(stored, np.float32(scale), np.float32(zero_point))


def _with_corrections(model: LeanModel, layers: Iterable[_Layer]) -> LeanModel:
    """A copy of the model that adds a constant, 0 so far, to the output of each layer with a bias."""
    by_output = {layer.output: layer for layer in layers if layer.bias}

    def change(proto: ModelProto) -> None:
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        for node in nodes:
            layer = by_output.get(node.output[0]) if node.output else None
            proto.graph.node.append(node)
            if layer is None:
                continue
            proto.graph.node[-1].output[0] = layer.before
            axes = len(model.kind_of(layer.weight)[1]) - 2 if layer.form.op == "Conv" else 0
            zeros = np.zeros((layer.outputs, *[1] * axes), np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(zeros, layer.correction))
            proto.graph.node.append(helper.make_node("Add", [layer.before, layer.correction], [layer.output]))

    return model.edited(change)


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Inputs of a layer: integers q of shape [G, N, K], which stand for the values scale * (q - zero_point).

    The float values are computed _BLOCK bytes at a time: those of a 3x3 depthwise Conv are nine times its input.
    """

    stored: NDArray[Any]
    scale: np.float32
    zero_point: np.float32

    def moments(self, part: slice, *, centred: bool) -> NDArray[np.float64]:
        """Second moments of some inputs, [G, K, K] in float64, about their means if `centred`, else about zero."""
        stored = self.stored[:, :, part]
        groups, rows, columns = stored.shape
        centre = stored.mean(axis=1, keepdims=True, dtype=np.float64) if centred else self.zero_point
        total: NDArray[np.float64] = np.zeros((groups, columns, columns))
        for block in _blocks(stored):
            block -= np.asarray(centre, np.float32)
            total += block.transpose(0, 2, 1) @ block
        total *= float(self.scale) ** 2 / rows
        return total


def _blocks(stored: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Yield integers as float32, some rows at a time, in shape [G, n, K]."""
    groups, rows, columns = stored.shape
    step = max(1, _BLOCK // (4 * groups * columns))
    for start in range(0, rows, step):
        yield stored[:, start : start + step].astype(np.float32)
