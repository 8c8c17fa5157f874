"""What layers take at the widths that a cut may leave, from times of single layers at their full and half width."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot.channels.layer_inputs import Layer, layers_of
from onnxshot.channels.savings import Alive, Part, Product, Work
from onnxshot.graph.axis_coupling import Axes, Ids, Shape
from onnxshot.runtimes.ort_layer_times import conv_block, layer_times


@dataclass(frozen=True, eq=False)
class Timed:
    """The time of a layer, which goes with the blocks of channels that it reads and makes.

    corners [2, 2]: measured at (full, half) width of what it reads, by (full, half) of what it makes; what is between
    or below is on the bilinear surface through them, but no channels take no time. read, made: numbers of the channels,
    None where cutting does not change that width. block: widths count as the next multiple of it.
    """

    corners: NDArray[np.float64]
    read: Ids | None
    made: Ids | None
    block: int

    @property
    def axes(self) -> Sequence[Ids]:
        """What it reads and makes."""
        return [ids for ids in (self.read, self.made) if ids is not None]

    def left(self, alive: Alive) -> float:
        """Its time with these numbers alive."""
        if any(not alive[ids].any() for ids in self.axes):
            return 0.0
        read, made = (self._halves(ids, alive) for ids in (self.read, self.made))
        return max(0.0, float(np.asarray([1 - read, read]) @ self.corners @ np.asarray([1 - made, made])))

    def _halves(self, ids: Ids | None, alive: Alive) -> float:
        """How far a width is on the way from full, 0, to half, 1."""
        if ids is None:
            return 0.0
        full, now = (-(-n // self.block) for n in (len(ids), int(np.count_nonzero(alive[ids]))))
        half = halved(len(ids), self.block) / self.block
        return (full - now) / (full - half) if half < full else 0.0


def halved(width: int, block: int) -> int:
    """Half a width, in whole blocks; a width of one block stays."""
    return max(1, -(-width // (2 * block))) * block if width > block else width


@dataclass(frozen=True, slots=True)
class _Alone:
    """A layer by itself. x, w: shapes of what it reads and of its weight; attrs: (name, value)."""

    op: str
    x: Shape
    w: Shape
    attrs: tuple[tuple[str, Any], ...]

    def model(self) -> ModelProto:
        rng = np.random.default_rng(0)
        w = numpy_helper.from_array(rng.standard_normal(self.w).astype(np.float32), "w")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        node = helper.make_node(self.op, ["x", "w"], ["y"], **dict(self.attrs))
        graph = helper.make_graph([node], "alone", [x], [y], [w])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def times_of(
    proto: ModelProto, axes: Axes, shapes: Mapping[str, Shape], *, threads: int = 2, seconds: float = 2.0
) -> Work:
    """Microseconds of a model's layers with weights of their own, measured in ONNX Runtime on this machine.

    proto: the model that the axes are of. shapes: of its tensors, concrete. Layers of the same sizes are timed once, in
    models of one layer with random weights, all in turns, for about `seconds`. Held: these weights, some twice as much
    as the model's. Raises ModelError where ONNX Runtime refuses a layer.
    """
    block = conv_block()
    layers = [layer for layer in layers_of(proto).values() if layer.input in shapes]
    corners = [_corners(layer, shapes[layer.input], block) for layer in layers]
    distinct = list(dict.fromkeys(alone for four in corners for alone in four))
    taken = layer_times((alone.model() for alone in distinct), threads=threads, seconds=seconds)
    found = dict(zip(distinct, taken, strict=True))
    return Work(tuple(
        _part(layer, [found[alone] for alone in four], axes.of.get(layer.weight, {}), block)
        for layer, four in zip(layers, corners, strict=True)
    ))  # fmt: skip


def _part(layer: Layer, times: Sequence[float], held: Mapping[int, Ids], block: int) -> Part:
    read, made = _weight_axes(layer)
    if layer.groups > 1 and not _depthwise(layer):
        return Product(times[0], tuple(held.values()))  # groups that become narrower are not timed
    return Timed(
        np.asarray(times).reshape(2, 2), None if _depthwise(layer) else held.get(read), held.get(made),
        block if layer.op == "Conv" else 1,
    )  # fmt: skip


def _corners(layer: Layer, x: Shape, block: int) -> list[_Alone]:
    """The layer at (full, half) width of what it reads, by (full, half) of what it makes."""
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
    """Axes of the weight that go with what is read, and with what is made."""
    return (0, 1) if layer.form.turned else (1, 0)


def _depthwise(layer: Layer) -> bool:
    return 1 < layer.groups == layer.shape[0]


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of its stage."""
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
