"""Layer by layer, let a quantized model repair what quantization did to it before: biases, and how weights are rounded.

The float model is the teacher. The quantized one walks over the samples, and at every layer the inputs are those of the
quantized model so far, with all layers before repaired, and the outputs wanted are the float model's (the asymmetric
form: GPTAQ, Li et al. 2025, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxshot.activation import Activation, Activations
from onnxshot.graph import Model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.maths.affine import bias_safe_scale
from onnxshot.maths.patches import patches
from onnxshot.maths.rounding import corrected_bias, round_weights
from onnxshot.parallel import in_order
from onnxshot.targets.ort_runtime import Runner
from onnxshot.walk import Walk

HELD = 192 << 20
"""Bytes of 8-bit tensors that the walk may hold: it is of as many samples as that takes."""
_WANTED = 64 << 20  # bytes of the float model's outputs that are held at once, of as many layers as that takes
_BIAS_ROWS, _WEIGHT_ROWS = 512, 8192  # values of every output that a layer is repaired on
_MOST_INPUTS = 8192  # inputs of one output: of more, the second moments are too large, and they stay as rounded

Feeds = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class Repair:
    """What changes at a layer: its bias, and the integers of its weight; None where they stay."""

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
    """Repairs by name of the layer. `rounding`: of the weights too, not of the biases only.

    layers: names of nodes that both models have: Conv, Gemm and MatMul with int8 weights in the candidate; what cannot
    be repaired is left out. Held at any time: both models, HELD bytes of tensors, and of one layer 8192 inputs and
    their second moments. Raises ModelError where a model does not run.
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
    wanted = _wanted(reference, ready, feeds, share, threads)
    found = {}
    for done, ((node, layer), outputs) in enumerate(zip(ready, wanted, strict=True), 1):
        weight = numpy_helper.to_array(constants[node.input[1]]) if rounding and node.input[1] in constants else None
        repair = layer.repair(student, outputs, share, weight, activations.behind(node.output[0]))
        for name, values in ((layer.bias, repair.bias), (layer.weight, repair.weight)):
            if values is not None:
                student.set(name, values)
        found[node.name] = repair
        if progress is not None:
            progress("repairing", done, len(ready))
    return found


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the float model gives at some positions of a layer's output.

    values: [N, O], sample after sample; starts: the row that each begins with; sizes: those of each whole, [*spatial].
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    sizes: tuple[tuple[int, ...], ...]


def _wanted(
    model: ModelProto, layers: Sequence[tuple[NodeProto, _Layer]], feeds: Feeds, share: int, threads: int
) -> Iterator[_Wanted]:
    """What every layer should give, in order, at `share` positions of every sample; some layers a run."""
    need = [4 * share * len(feeds) * layer.outputs for _, layer in layers]
    start = 0
    while start < len(layers):
        end, size = start + 1, need[start]
        while end < len(layers) and size + need[end] <= _WANTED:
            size += need[end]
            end += 1
        group = layers[start:end]
        names = [node.output[0] for node, _ in group]
        runner = Runner(_exposed(model, names), threads=1, outputs=names)
        rows = list(in_order(partial(_chosen_rows, runner, group, share), enumerate(feeds), threads))
        for i in range(len(group)):
            values, sizes = zip(*(sample[i] for sample in rows), strict=True)
            ends = np.cumsum([len(part) for part in values])
            yield _Wanted(np.concatenate(values), np.concatenate([[0], ends[:-1]]), sizes)
        start = end


def _chosen_rows(
    runner: Runner,
    layers: Sequence[tuple[NodeProto, _Layer]],
    share: int,
    numbered: tuple[int, Mapping[str, NDArray[Any]]],
) -> list[tuple[NDArray[np.float32], tuple[int, ...]]]:
    """Of one sample, the chosen positions of each layer's output [N, O], and the sizes of the whole."""
    number, feed = numbered
    found = runner.run(feed)
    return [layer.chosen(found[node.output[0]], share, number) for node, layer in layers]


def _exposed(model: ModelProto, names: Sequence[str]) -> bytes:
    """The model with these outputs only."""
    other = ModelProto()
    other.CopyFrom(model)
    del other.graph.output[:]
    other.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return bytes(other.SerializeToString())


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the candidate: the names of its input and constants, how many outputs it has, and its attributes."""

    op: str
    input: str
    weight: str
    scale: str
    bias: str
    outputs: int
    attrs: Mapping[str, Any]

    @classmethod
    def of(cls, node: NodeProto, makers: Mapping[str, NodeProto], student: Walk) -> _Layer | None:
        """None where the layer is none that can be repaired."""
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
        found = cls(node.op_type, node.input[0], maker.input[0], maker.input[1], bias, outputs, attrs)
        weight = student.constant(maker.input[0])
        if weight.dtype != np.int8 or (weight.ndim != 2 and node.op_type != "Conv"):
            return None
        table = found._table(weight)
        return replace(found, outputs=table.shape[0] * table.shape[1]) if table.shape[2] <= _MOST_INPUTS else None

    def repair(
        self, student: Walk, wanted: _Wanted, share: int, weight: NDArray[Any] | None, behind: Activation
    ) -> Repair:
        """Learn the repair from what the layer reads in the student, and what it should give."""
        stored, scale = student.constant(self.weight), student.constant(self.scale).astype(np.float64).reshape(-1)
        integers = self._table(stored).astype(np.float64)  # [G, O, K]
        scales = np.broadcast_to(scale, self.outputs).reshape(integers.shape[:2])
        x = self._read(student, wanted, share, integers.shape)
        rounded = None
        if weight is not None:
            centred = x - x.mean(axis=1, keepdims=True) if self.bias else x
            moments = (centred.transpose(0, 2, 1) @ centred).astype(np.float64) / x.shape[1]
            most = int(np.abs(integers).max())  # 7-bit weights are stored as int8 too
            integers = round_weights(self._table(weight), moments, scales, (-most, most))
            rounded = self._stored(integers, stored)
        if not self.bias:
            return Repair(None, rounded)
        table = (integers * scales[:, :, None]).astype(np.float32)
        got = (x @ table.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(x.shape[1], -1)
        old = student.constant(self.bias)
        learned = corrected_bias(wanted.values, got, old.reshape(-1), behind, wanted.starts)
        bias = learned.astype(np.float32).reshape(old.shape)
        params = student.params(self.input)
        assert params is not None
        flat = scales.reshape(-1)
        fits = np.array_equal(bias_safe_scale(flat, params[0], bias.reshape(-1)), flat)
        return Repair(bias if fits else None, rounded)

    def chosen(self, y: NDArray[Any], share: int, number: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Some positions of a sample's output [N, O], and the sizes [*spatial] of the whole."""
        if self.op == "Conv":
            flat = y.reshape(y.shape[0], y.shape[1], -1)
            at = _spread_over(flat.shape[2], share, number)
            return np.ascontiguousarray(flat[:, :, at].transpose(0, 2, 1)).reshape(-1, y.shape[1]), y.shape[2:]
        at = _spread_over(math.prod(y.shape[:-1]), share, number)
        return y.reshape(-1, y.shape[-1])[at], ()

    def _read(
        self, student: Walk, wanted: _Wanted, share: int, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """What the layer reads for those positions [G, N, K]."""
        params = student.params(self.input)
        assert params is not None
        scale, zero_point = params
        found = []
        for number, (x, sizes) in enumerate(zip(student.values(self.input), wanted.sizes, strict=True)):
            if self.op == "Conv":
                at = _spread_over(math.prod(sizes), share, number)
                found.append(self._patches(x, sizes, student, at, zero_point))
            else:
                found.append(x.reshape(-1, x.shape[-1])[_spread_over(math.prod(x.shape[:-1]), share, number)])
        stored = np.concatenate(found).reshape(-1, shape[0], shape[2]).transpose(1, 0, 2)
        values = stored.astype(np.float32)
        values -= np.float32(zero_point)
        values *= np.float32(scale)
        return values

    def _table(self, weight: NDArray[Any]) -> NDArray[Any]:
        """A weight as [groups, outputs, inputs times kernel]."""
        if self.op != "Conv" and not self.attrs.get("transB", 0):
            weight = weight.T
        groups = int(self.attrs.get("group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)

    def _stored(self, integers: NDArray[np.float64], like: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `_table`, in the type and shape that is stored."""
        flat = integers.reshape(integers.shape[0] * integers.shape[1], -1)
        turned = self.op != "Conv" and not self.attrs.get("transB", 0)
        return np.ascontiguousarray((flat.T if turned else flat).reshape(like.shape).astype(like.dtype))

    def _patches(
        self,
        x: NDArray[Any],
        sizes: tuple[int, ...],
        student: Walk,
        at: NDArray[np.int64],
        zero_point: NDArray[Any],
    ) -> NDArray[Any]:
        kernel = student.constant(self.weight).shape[2:]
        ones = [1] * len(kernel)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        begin = list(self.attrs.get("pads", [0] * len(kernel) * 2))[: len(kernel)]
        how = self.attrs.get("auto_pad", b"NOTSET")
        if how.startswith(b"SAME"):
            for axis, (size, out) in enumerate(zip(x.shape[2:], sizes, strict=True)):
                pads = max((out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - size, 0)
                begin[axis] = pads // 2 if how == b"SAME_UPPER" else pads - pads // 2
        fill = zero_point.reshape(())
        taken = [
            patches(one, at, sizes, kernel=kernel, strides=strides, dilations=dilations, begin=begin, fill=fill)
            for one in x
        ]
        return np.concatenate(taken)


def _spread_over(size: int, share: int, number: int) -> NDArray[np.int64]:
    """So many positions of `size`, evenly spread; another sample begins at another place."""
    count = min(share, size)
    start = (number * 0.618034) % 1.0  # multiples of the golden ratio are spread evenly too
    return np.minimum(((np.arange(count) + start) * (size / count)).astype(np.int64), size - 1)


def _affordable(model: ModelProto, layers: Collection[str], feeds: Feeds) -> int:
    """How many samples fit into HELD: what the walk holds of one while a layer is repaired, a byte a value."""
    shapes = concrete_shapes(Model(model), {name: np.shape(values) for name, values in feeds[0].items()})
    stops = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    last = {stops.get(name, name): i for i, node in enumerate(model.graph.node) for name in node.input}
    alive: dict[str, int] = {}
    most = 1
    for i, node in enumerate(model.graph.node):
        if node.op_type != "DequantizeLinear":
            size = 1 if node.op_type == "QuantizeLinear" else 4
            alive |= {name: size * math.prod(shapes.get(name, ())) for name in node.output}
        if node.name in layers:  # between two layers, samples pass one by one
            most = max(most, sum(alive.values()) - 4 * math.prod(shapes.get(node.output[0], ())))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return max(1, min(len(feeds), HELD // most))
