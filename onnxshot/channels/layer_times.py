"""Latency model: the time of each layer at any width, interpolated from its times at full and half width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot import memory
from onnxshot.channels.costs import Alive, Cost, CostTerm, Product
from onnxshot.channels.layer_inputs import Layer, layers_of
from onnxshot.graph.axis_coupling import Axes, Ids, Shape
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_layer_times import conv_block, layer_times


@dataclass(frozen=True, eq=False)
class LayerTime:
    """The time of a layer as a function of the numbers of blocks of its input and output channels.

    Times between and below the measured widths lie on the bilinear surface through them. A layer without channels takes
    no time.

    Attributes:
        corners: [2, 2], microseconds measured at (full, half) input width by (full, half) output width.
        read: Numbers of the input channels; None if removal does not change the input width.
        made: Numbers of the output channels; None if removal does not change the output width.
        block: Widths are rounded up to a multiple of it.
    """

    corners: NDArray[np.float64]
    read: Ids | None
    made: Ids | None
    block: int

    @property
    def axes(self) -> Sequence[Ids]:
        """Numbers of the input and output channels."""
        return [ids for ids in (self.read, self.made) if ids is not None]

    def left(self, alive: Alive) -> float:
        """The time with these channels remaining."""
        if any(not alive[ids].any() for ids in self.axes):
            return 0.0
        read, made = (self._halves(ids, alive) for ids in (self.read, self.made))
        return max(0.0, float(np.asarray([1 - read, read]) @ self.corners @ np.asarray([1 - made, made])))

    def _halves(self, ids: Ids | None, alive: Alive) -> float:
        """Position of a width between full (0) and half (1)."""
        if ids is None:
            return 0.0
        full, now = (-(-n // self.block) for n in (len(ids), int(np.count_nonzero(alive[ids]))))
        half = halved(len(ids), self.block) / self.block
        return (full - now) / (full - half) if half < full else 0.0


def halved(width: int, block: int) -> int:
    """Half a width, rounded up to whole blocks; a width of one block stays."""
    return max(1, -(-width // (2 * block))) * block if width > block else width


@dataclass(frozen=True, slots=True)
class _Alone:
    """A layer to be timed alone. x, w: shapes of its input and weight. attrs: (name, value)."""

    op: str
    x: Shape
    w: Shape
    attrs: tuple[tuple[str, Any], ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight in float32."""
        return 4 * math.prod(self.w)

    def narrowed(self, most: int) -> _Alone:
        """The layer with fewer outputs, so that its weight has at most so many bytes; a Conv of groups stays."""
        made = 0 if self.op == "Conv" or dict(self.attrs).get("transB", 0) else 1
        if self.weight_bytes <= most or dict(self.attrs).get("group", 1) > 1:
            return self
        w = list(self.w)
        w[made] = max(w[made] * most // self.weight_bytes, 1)
        return replace(self, w=tuple(w))

    def model(self) -> ModelProto:
        """A model of this layer alone, with random weights."""
        rng = np.random.default_rng(0)
        w = numpy_helper.from_array(rng.standard_normal(self.w, np.float32), "w")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        node = helper.make_node(self.op, ["x", "w"], ["y"], **dict(self.attrs))
        graph = helper.make_graph([node], "alone", [x], [y], [w])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def latency_cost(
    model: ModelProto | LeanModel, axes: Axes, shapes: Mapping[str, Shape], *, threads: int = 2, seconds: float = 2.0
) -> Cost:
    """Measure the time of the layers with weights of their own, in ONNX Runtime on this machine.

    Each layer is timed in a model of its own with random weights, at full and half width. Layers of equal sizes are
    timed once. The measurements are interleaved, for as many layers at once as have `memory.part_bytes()` of weights.
    A layer with more is timed with fewer outputs, to which its time is taken to be proportional.

    Args:
        model: The model that `axes` describes.
        axes: Channel numbers of every tensor axis.
        shapes: Concrete shapes of the model's tensors.
        threads: Threads of ONNX Runtime.
        seconds: Time for all measurements together, about.

    Returns:
        The cost in microseconds.

    Raises:
        ModelError: ONNX Runtime does not load a layer.

    Memory: the random weights of layers that are timed at once, in a few copies.
    """
    block = conv_block()
    layers = [layer for layer in layers_of(model).values() if layer.input in shapes]
    corners = [_corners(layer, shapes[layer.input], block) for layer in layers]
    most = memory.part_bytes()
    distinct = list(dict.fromkeys(alone.narrowed(most) for four in corners for alone in four))
    taken = dict[_Alone, float]()
    for some in _at_once(distinct, most):
        own = seconds * len(some) / len(distinct)
        times = layer_times((alone.model() for alone in some), threads=threads, seconds=own)
        taken |= zip(some, times, strict=True)
    found = {
        alone: taken[alone.narrowed(most)] * (alone.weight_bytes / alone.narrowed(most).weight_bytes)
        for four in corners for alone in four
    }  # fmt: skip
    return Cost(tuple(
        _part(layer, [found[alone] for alone in four], axes.of.get(layer.weight, {}), block)
        for layer, four in zip(layers, corners, strict=True)
    ))  # fmt: skip


def _at_once(layers: Sequence[_Alone], most: int) -> Iterator[list[_Alone]]:
    """Runs of layers with at most so many bytes of weights, or of one layer."""
    some, size = list[_Alone](), 0
    for alone in layers:
        if some and size + alone.weight_bytes > most:
            yield some
            some, size = [], 0
        some.append(alone)
        size += alone.weight_bytes
    if some:
        yield some


def _part(layer: Layer, times: Sequence[float], held: Mapping[int, Ids], block: int) -> CostTerm:
    read, made = _weight_axes(layer)
    if layer.groups > 1 and not _depthwise(layer):
        return Product(times[0], tuple(held.values()))  # grouped convolutions are not timed at half width
    return LayerTime(
        np.asarray(times).reshape(2, 2), None if _depthwise(layer) else held.get(read), held.get(made),
        block if layer.op == "Conv" else 1,
    )  # fmt: skip


def _corners(layer: Layer, x: Shape, block: int) -> list[_Alone]:
    """The layer at (full, half) input width by (full, half) output width, row by row."""
    read, made = _weight_axes(layer)
    if layer.op != "Conv":
        block = 1
    found = []
    for less_read in (False, True):
        for less_made in (False, True):
            w, sizes, attrs = list(layer.shape), list(x), dict(layer.attrs)
            if less_made and (layer.groups == 1 or _depthwise(layer)):
                w[made] = halved(w[made], block)
            if less_read and layer.groups == 1:
                w[read] = halved(w[read], block)
            if _depthwise(layer):
                attrs["group"] = w[made]
            sizes[1 if layer.op == "Conv" else -1] = w[read] * int(attrs.get("group", 1))
            plain = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted(attrs.items()))
            found.append(_Alone(layer.op, tuple(sizes), tuple(w), plain))
    return found


def _weight_axes(layer: Layer) -> tuple[int, int]:
    """(Input axis, output axis) of the weight."""
    return (0, 1) if layer.form.transposed else (1, 0)


def _depthwise(layer: Layer) -> bool:
    return 1 < layer.groups == layer.shape[0]
