"""What a Conv, Gemm or MatMul reads and gives at some positions of some samples, as rows of matrices."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.parallel import in_order
from onnxshot.graph import Model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.graph.proto_copies import with_outputs
from onnxshot.maths.im2col import patches
from onnxshot.runtimes.ort_runtime import Runner

Feeds = Sequence[Mapping[str, NDArray[Any]]]

_WANTED = 64 << 20  # bytes of a model's outputs that are held at once, of as many layers as that takes


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """How an operator multiplies: what is needed to see it as a product of matrices, group by group.

    op: Conv, Gemm without transA, or MatMul with the weight on the right; attrs: the node's.
    """

    op: str
    attrs: Mapping[str, Any]

    @property
    def turned(self) -> bool:
        """True where the weight is stored as [inputs, outputs]."""
        return self.op != "Conv" and not self.attrs.get("transB", 0)

    def table(self, weight: NDArray[Any]) -> NDArray[Any]:
        """A weight as [groups, outputs, inputs times kernel]."""
        if self.turned:
            weight = weight.T
        groups = int(self.attrs.get("group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)

    def stored(self, table: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `table`, in the type and shape that is stored."""
        flat = table.reshape(table.shape[0] * table.shape[1], -1)
        return np.ascontiguousarray((flat.T if self.turned else flat).reshape(like.shape).astype(like.dtype))

    def chosen(self, y: NDArray[Any], share: int, number: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Some positions of a sample's output [N, O], and the sizes [*spatial] of the whole."""
        if self.op == "Conv":
            flat = y.reshape(y.shape[0], y.shape[1], -1)
            at = spread_over(flat.shape[2], share, number)
            return np.ascontiguousarray(flat[:, :, at].transpose(0, 2, 1)).reshape(-1, y.shape[1]), y.shape[2:]
        at = spread_over(math.prod(y.shape[:-1]), share, number)
        return y.reshape(-1, y.shape[-1])[at], ()

    def read(
        self,
        inputs: Sequence[NDArray[Any]],
        sizes: Sequence[tuple[int, ...]],
        share: int,
        weight_shape: Sequence[int],
        fill: NDArray[Any],
    ) -> NDArray[Any]:
        """What the layer reads for the positions of `chosen`: [G, N, K], sample after sample, in the inputs' type.

        inputs: one array per sample; sizes: those of each output; fill: what a Conv is padded with.
        """
        kernel = weight_shape[2:]
        found = [
            self.inputs(x, size, share, number, kernel, fill)
            for number, (x, size) in enumerate(zip(inputs, sizes, strict=True))
        ]
        return np.concatenate(found).transpose(1, 0, 2)

    def inputs(
        self,
        x: NDArray[Any],
        sizes: Sequence[int],
        share: int,
        number: int,
        kernel: Sequence[int],
        fill: NDArray[Any] | float = 0.0,
    ) -> NDArray[Any]:
        """What is read of one sample [N, G, K], for the positions that `chosen` takes of a sample of this number."""
        if self.op == "Conv":
            rows = self._patches(x, sizes, kernel, spread_over(math.prod(sizes), share, number), fill)
        else:
            rows = x.reshape(-1, x.shape[-1])[spread_over(math.prod(x.shape[:-1]), share, number)]
        return rows.reshape(len(rows), int(self.attrs.get("group", 1)), -1)

    def _patches(
        self,
        x: NDArray[Any],
        sizes: Sequence[int],
        kernel: Sequence[int],
        at: NDArray[np.int64],
        fill: NDArray[Any] | float,
    ) -> NDArray[Any]:
        ones = [1] * len(kernel)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        begin = list(self.attrs.get("pads", [0] * len(kernel) * 2))[: len(kernel)]
        how = self.attrs.get("auto_pad", b"NOTSET")
        if how.startswith(b"SAME"):
            for axis, (size, out) in enumerate(zip(x.shape[2:], sizes, strict=True)):
                pads = max((out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - size, 0)
                begin[axis] = pads // 2 if how == b"SAME_UPPER" else pads - pads // 2
        taken = [
            patches(one, at, tuple(sizes), kernel=kernel, strides=strides, dilations=dilations, begin=begin, fill=fill)
            for one in x
        ]
        return np.concatenate(taken)


def product(x: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a layer gives without its bias, of what it reads and its weight: [G, N, K], [G, O, K] -> [N, G * O]."""
    if table.shape[1] == 1:  # many small products of matrices are slow
        return np.ascontiguousarray(np.einsum("gnk,gk->ng", x, table[:, 0]))
    return (x @ table.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(x.shape[1], -1)


@dataclass(frozen=True, slots=True)
class LayerOutputs:
    """What a model gives at some positions of a layer's output.

    values: [N, O], sample after sample; starts: the row that each begins with; sizes: those of each whole, [*spatial].
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    sizes: tuple[tuple[int, ...], ...]


class Layer(Protocol):
    """A layer whose outputs are wanted."""

    @property
    def form(self) -> MatrixForm:
        """How it multiplies."""

    @property
    def outputs(self) -> int:
        """How many outputs it has."""


def layer_outputs(
    model: ModelProto,
    layers: Sequence[tuple[NodeProto, Layer]],
    feeds: Feeds,
    shares: Sequence[int],
    threads: int,
    most_bytes: int = _WANTED,
) -> Iterator[LayerOutputs]:
    """What every layer gives, in order, at so many positions of every sample; some layers a run."""
    model = with_fixed_randomness(model)
    need = [4 * share * len(feeds) * layer.outputs for (_, layer), share in zip(layers, shares, strict=True)]
    start = 0
    while start < len(layers):
        end, size = start + 1, need[start]
        while end < len(layers) and size + need[end] <= most_bytes:
            size += need[end]
            end += 1
        group = [(node.output[0], layer.form, share) for (node, layer), share in
                 zip(layers[start:end], shares[start:end], strict=True)]  # fmt: skip
        names = list(dict.fromkeys(name for name, _, _ in group))
        runner = Runner(with_outputs(model, names), threads=1, outputs=names, inner=True)
        rows = list(in_order(partial(_chosen_rows, runner, group), enumerate(feeds), threads))
        for i in range(len(group)):
            values, sizes = zip(*(sample[i] for sample in rows), strict=True)
            ends = np.cumsum([len(part) for part in values])
            yield LayerOutputs(np.concatenate(values), np.concatenate([[0], ends[:-1]]), sizes)
        start = end


def _chosen_rows(
    runner: Runner, layers: Sequence[tuple[str, MatrixForm, int]], numbered: tuple[int, Mapping[str, NDArray[Any]]]
) -> list[tuple[NDArray[np.float32], tuple[int, ...]]]:
    """Of one sample, the chosen positions of each layer's output [N, O], and the sizes of the whole."""
    number, feed = numbered
    found = runner.run(feed)
    return [form.chosen(found[name], share, number) for name, form, share in layers]


def spread_over(size: int, share: int, number: int) -> NDArray[np.int64]:
    """So many positions of `size`, evenly spread; another sample begins at another place."""
    count = min(share, size)
    start = (number * 0.618034) % 1.0  # multiples of the golden ratio are spread evenly too
    return np.minimum(((np.arange(count) + start) * (size / count)).astype(np.int64), size - 1)


def samples_that_fit(model: ModelProto, layers: Collection[str], feeds: Feeds, held: int) -> int:
    """How many samples fit into so many bytes: what a walk holds of one at a layer; of a quantized tensor, a byte."""
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
    return max(1, min(len(feeds), held // most))
