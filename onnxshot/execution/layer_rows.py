"""Inputs and outputs of a Conv, Gemm or MatMul as rows of matrices, at some positions of some samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot import memory
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.im2col import patches
from onnxshot.runtimes.spool import Spool

Feeds = Sequence[Mapping[str, NDArray[Any]]]

_STEP = 64 << 20  # bytes of outputs that one step of the model gives, at most


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """How an operator can be written as products of matrices, one per group.

    Attributes:
        op: "Conv", "Gemm" without transA, or "MatMul" with the weight on the right.
        attrs: Attributes of the node.
    """

    op: str
    attrs: Mapping[str, Any]

    @property
    def transposed(self) -> bool:
        """True if the weight is stored as [inputs, outputs]."""
        return self.op != "Conv" and not self.attrs.get("transB", 0)

    def table(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Reshape a weight to [groups, outputs, inputs times kernel]."""
        if self.transposed:
            weight = weight.T
        groups = int(self.attrs.get("group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)

    def stored(self, table: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `table`, with the type and shape of `like`."""
        flat = table.reshape(table.shape[0] * table.shape[1], -1)
        return np.ascontiguousarray((flat.T if self.transposed else flat).reshape(like.shape).astype(like.dtype))

    def output_rows(self, y: NDArray[Any], share: int, number: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Pick positions of one sample's output.

        Args:
            y: Output of the layer on the sample.
            share: Most positions to pick.
            number: Index of the sample, which shifts the positions.

        Returns:
            Rows [N, O], and the spatial shape of the whole output; () if the operator has none.
        """
        if self.op == "Conv":
            flat = y.reshape(y.shape[0], y.shape[1], -1)
            at = spread_over(flat.shape[2], share, number)
            return np.ascontiguousarray(flat[:, :, at].transpose(0, 2, 1)).reshape(-1, y.shape[1]), y.shape[2:]
        at = spread_over(math.prod(y.shape[:-1]), share, number)
        return y.reshape(-1, y.shape[-1])[at], ()

    def output_sizes(self, x: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the output for an input of shape x; () if the operator has none.

        kernel: the sizes of the weight's kernel. Source: ONNX Conv-11.
        """
        if self.op != "Conv":
            return ()
        ones = [1] * len(kernel)
        strides, dilations = self.attrs.get("strides", ones), self.attrs.get("dilations", ones)
        how = self.attrs.get("auto_pad", b"NOTSET")
        if how.startswith(b"SAME"):
            return tuple(-(-size // stride) for size, stride in zip(x[2:], strides, strict=True))
        pads = [0] * len(kernel) * 2 if how == b"VALID" else self.attrs.get("pads", [0] * len(kernel) * 2)
        both = [a + b for a, b in zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)]
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        return tuple((n + p - s) // t + 1 for n, p, s, t in zip(x[2:], both, spans, strides, strict=True))

    def read(
        self,
        inputs: Sequence[NDArray[Any]],
        sizes: Sequence[tuple[int, ...]],
        share: int,
        weight_shape: Sequence[int],
        fill: NDArray[Any],
    ) -> NDArray[Any]:
        """Inputs of the layer at the positions that `output_rows` picks, sample after sample.

        Args:
            inputs: One array per sample.
            sizes: Spatial shape of each sample's output.
            share: Most positions per sample.
            weight_shape: Shape of the stored weight.
            fill: Padding value of a Conv.

        Returns:
            Rows [G, N, K], in the type of the inputs.
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
        """Inputs of the layer [N, G, K] on one sample, at the positions that `output_rows` picks for this `number`."""
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
    """Outputs of a layer without its bias.

    Args:
        x: Inputs [G, N, K].
        table: Weight [G, O, K].

    Returns:
        Outputs [N, G * O].
    """
    if table.shape[1] == 1:  # many small matrix products are slow
        return np.ascontiguousarray(np.einsum("gnk,gk->ng", x, table[:, 0]))
    return (x @ table.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(x.shape[1], -1)


@dataclass(frozen=True, slots=True)
class LayerOutputs:
    """Outputs of a layer at some positions.

    Attributes:
        values: Rows [N, O], sample after sample.
        starts: Index of each sample's first row.
        sizes: Spatial shape of each sample's whole output.
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    sizes: tuple[tuple[int, ...], ...]


class Layer(Protocol):
    """A layer whose outputs are needed."""

    @property
    def form(self) -> MatrixForm:
        """How it is written as products of matrices."""

    @property
    def outputs(self) -> int:
        """Number of its outputs."""


def layer_outputs(
    model: ModelProto | LeanModel,
    layers: Sequence[tuple[NodeProto, Layer]],
    feeds: Feeds,
    shares: Sequence[int],
    threads: int,
) -> Iterator[LayerOutputs]:
    """Yield the outputs of each layer, in order, at some positions of every sample.

    The model runs once: it advances over some layers, and goes on from there. Which layers are in one step does not
    depend on the memory budget, so neither do the last bits of the outputs.

    Memory: what a walk holds, and as much again of outputs that wait; more are in a temporary file.

    Args:
        model: The model.
        layers: Nodes and their layers, in graph order.
        feeds: Samples.
        shares: Most positions per sample, for each layer.
        threads: CPU threads in total.
    """
    walk = Walk(model, feeds, threads)
    need = [4 * share * len(feeds) * layer.outputs for (_, layer), share in zip(layers, shares, strict=True)]
    start = 0
    while start < len(layers):
        end, size = start + 1, need[start]
        while end < len(layers) and size + need[end] <= _STEP:
            size += need[end]
            end += 1
        step = [((node.output[0], share), layer.form) for (node, layer), share in
                zip(layers[start:end], shares[start:end], strict=True)]  # fmt: skip
        with Spool(memory.waiting_bytes()) as spool:
            found = walk.visit({name for (name, _), _ in step}, partial(_keep_rows, dict(step), spool))
            sizes = {(key, sample): size for sample, of_layers in found for key, size in of_layers.items()}
            for key, _ in step:
                rows = [spool.get((key, sample)) for sample in range(len(feeds))]
                ends = np.cumsum([len(part) for part in rows])
                shapes = tuple(sizes[key, sample] for sample in range(len(feeds)))
                yield LayerOutputs(np.concatenate(rows), np.concatenate([[0], ends[:-1]]), shapes)
                del rows
        start = end


def _keep_rows(
    layers: Mapping[tuple[str, int], MatrixForm], spool: Spool, sample: int, found: Mapping[str, NDArray[Any]]
) -> tuple[int, dict[tuple[str, int], tuple[int, ...]]]:
    """Keep rows [N, O] of each layer's output on one sample; return it, and the spatial shape of each output."""
    sizes = {}
    for (name, share), form in layers.items():
        if name in found:
            rows, sizes[name, share] = form.output_rows(found[name], share, sample)
            spool.put(((name, share), sample), rows)
    return sample, sizes


def spread_over(size: int, share: int, number: int) -> NDArray[np.int64]:
    """Up to `share` evenly spread positions out of `size`; each sample (`number`) starts at another place."""
    count = min(share, size)
    start = (number * 0.618034) % 1.0  # multiples of the golden ratio are evenly spread
    return np.minimum(((np.arange(count) + start) * (size / count)).astype(np.int64), size - 1)
