"""Operators as older opsets have them, one to a row, with random inputs: raising the opset must keep their meaning.

`ROWS` covers what changed between opsets 7 and 21: attributes that became inputs, defaults that moved, and operators
that mean something else today.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
RNG = np.random.default_rng(0)
FLOATS = ("float32", "float16", "float64")


@dataclass(frozen=True)
class Row:
    """One operator: inputs are fed, constants are stored behind them."""

    op: str
    opset: int
    inputs: Sequence[Array]
    constants: Sequence[Array] = ()
    outputs: int = 1
    attrs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.opset} {self.attrs} {[c.ravel()[:4].tolist() for c in self.constants]}"

    @property
    def feed(self) -> dict[str, Array]:
        return {f"x{i}": value for i, value in enumerate(self.inputs)}

    def model(self) -> onnx.ModelProto:
        """The operator as a model; outputs have the types that ONNX infers."""
        constants = {f"c{i}": value for i, value in enumerate(self.constants)}
        made = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, [*self.feed, *constants], made, name="the_node", **self.attrs)
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.feed.items()
        ]
        stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in made]
        graph = helper.make_graph([node], "g", infos, outputs, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        for output, known in zip(model.graph.output, inferred, strict=True):
            output.type.tensor_type.elem_type = known.type.tensor_type.elem_type or infos[0].type.tensor_type.elem_type
        return model


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def rows() -> Iterator[Row]:
    yield from resized()
    yield from by_flattened_axis()
    for kind in FLOATS:
        yield from of_type(kind)
    yield from pooled()
    yield from reduced()
    yield from recurrent()
    yield from others()


def resized() -> Iterator[Row]:
    """Upsample and Resize: larger, smaller and both, whole scales and others, of 1 to 3 axes."""
    x = normal(2, 3, 8, 10)
    larger = ([1, 1, 2, 2], [1, 1, 1.5, 1.7], [1, 1, 3, 1], [1, 1, 2.3, 3.1])
    smaller = ([1, 1, 0.5, 0.5], [1, 1, 0.6, 0.3], [1, 1, 0.25, 0.25], [1, 1, 2.3, 0.4], [1, 1, 0.7, 1.9])
    for mode in ("nearest", "linear"):
        for scales in larger:
            for opset in (7, 8):
                yield Row("Upsample", opset, [x], attrs={"mode": mode, "scales": [float(s) for s in scales]})
            yield Row("Upsample", 9, [x], [floats(*scales)], attrs={"mode": mode})
        for scales in (*larger, *smaller):
            yield Row("Resize", 10, [x], [floats(*scales)], attrs={"mode": mode})
        yield Row("Upsample", 9, [normal(5, 9)], [floats(2, 1.5)], attrs={"mode": mode})
        yield Row("Resize", 10, [normal(5, 9)], [floats(0.6, 1.5)], attrs={"mode": mode})
    yield Row("Upsample", 9, [normal(1, 2, 4, 5, 6)], [floats(1, 1, 1.5, 2, 2)], attrs={"mode": "nearest"})
    yield Row("Upsample", 9, [x], [floats(1, 1, 2, 2)])
    for kind in (np.uint8, np.int32):
        yield Row("Upsample", 9, [(np.abs(x) * 20).astype(kind)], [floats(1, 1, 2, 1.5)], attrs={"mode": "nearest"})
    coordinates = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for how in coordinates:
        for scales in ([1, 1, 2.3, 0.6], [1, 1, 1.5, 3]):
            attrs = {"coordinate_transformation_mode": how}
            for opset in (11, 13):
                for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
                    nearest = {"mode": "nearest", "nearest_mode": rounding, **attrs}
                    yield Row("Resize", opset, [x], [floats(), floats(*scales)], attrs=nearest)
                for mode in ("linear", "cubic"):
                    yield Row("Resize", opset, [x], [floats(), floats(*scales)], attrs={"mode": mode, **attrs})
    attrs = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    for scales in ([1, 1, 2.3, 0.6], [1, 1, 1.5, 3], [1, 1, 0.4, 2]):
        yield Row("Resize", 11, [x], [floats(), floats(*scales)], attrs=attrs)
    crop = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    yield Row("Resize", 11, [x], [floats(0, 0, 0.1, 0.1, 1, 1, 0.8, 0.8), floats(), ints(2, 3, 7, 15)], attrs=crop)


def by_flattened_axis() -> Iterator[Row]:
    """Softmax and the like, which took all axes from one on for one."""
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for opset in (7, 11, 12):
            yield Row(op, opset, [normal(2, 3, 4, 5)])
            yield Row(op, opset, [np.round(normal(2, 3, 4, 5))], attrs={"axis": 1})  # ties
            for axis in (0, 1, 2, 3, -1, -2, -3) if opset > 7 else (0, 1, 2, 3):
                yield Row(op, opset, [normal(2, 3, 4, 5)], attrs={"axis": axis})


def of_type(kind: str) -> Iterator[Row]:
    """What has attributes of float32 for tensors of any float type."""
    x = normal(2, 3, 4).astype(kind)
    for opset in (7, 10):
        if kind == "float32":
            for limits in ({}, {"min": -0.5}, {"max": 0.3}, {"min": -0.5, "max": 0.3}):
                yield Row("Clip", opset, [x], attrs=limits)
        if kind != "float16":
            for how in ({}, {"value": 2.5}, {"mode": "reflect"}, {"mode": "edge"}):
                yield Row("Pad", opset, [x], attrs={"pads": [0, 1, 1, 0, 0, 2], **how})
    for opset in (7, 10, 11):
        yield Row("Dropout", opset, [x], outputs=2, attrs={"ratio": 0.3})
    x, ones = normal(2, 6, 4, 5).astype(kind), np.abs(normal(6)).astype(kind) + 1
    vectors = [ones, normal(6).astype(kind), normal(6).astype(kind), ones]
    yield Row("BatchNormalization", 7, [x], vectors, attrs={"spatial": 1})
    yield Row("BatchNormalization", 9, [x], vectors, attrs={"epsilon": 0.01})
    for groups in (2, 3):
        scales = [normal(groups).astype(kind), normal(groups).astype(kind)]
        for opset in (18, 20):
            yield Row("GroupNormalization", opset, [x], scales, attrs={"num_groups": groups, "epsilon": 0.1})
    if kind == "float32":
        activations = [np.abs(normal(6, 4, 5)) + 1, normal(6, 4, 5), normal(6, 4, 5), np.abs(normal(6, 4, 5)) + 1]
        yield Row("BatchNormalization", 7, [x], activations, attrs={"spatial": 0})
        yield Row("GroupNormalization", 18, [x, normal(2), normal(2)], attrs={"num_groups": 2})


def pooled() -> Iterator[Row]:
    x = normal(1, 3, 9, 8)
    padded = (
        {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"},
    )  # fmt: skip
    for opset in (7, 10, 11, 12, 18):
        for how in padded:
            attrs = {"kernel_shape": [3, 3], **how}
            yield Row("MaxPool", opset, [x], attrs=attrs)
            yield Row("LpPool", opset, [x], attrs=attrs)
            for included in (0, 1):
                yield Row("AveragePool", opset, [x], attrs={"count_include_pad": included, **attrs})
                if opset >= 10 and "auto_pad" not in how:
                    yield Row("AveragePool", opset, [x], attrs={"count_include_pad": included, "ceil_mode": 1, **attrs})
            if opset >= 10 and "auto_pad" not in how:
                yield Row("MaxPool", opset, [x], attrs={"ceil_mode": 1, **attrs})
            if opset >= 8:
                yield Row("MaxPool", opset, [x], outputs=2, attrs={"storage_order": 1, **attrs})


def reduced() -> Iterator[Row]:
    x = np.abs(normal(2, 3, 4)) + 0.1
    names = ("Sum", "Mean", "Max", "Min", "L1", "L2", "LogSum", "LogSumExp", "Prod", "SumSquare")
    for op in (f"Reduce{name}" for name in names):
        for opset in (7, 11, 12) if op == "ReduceSum" else (7, 11, 12, 13, 17):
            yield Row(op, opset, [x])
            yield Row(op, opset, [x], attrs={"axes": [1], "keepdims": 0})
            yield Row(op, opset, [x], attrs={"axes": [0, -1] if opset >= 11 else [0, 2]})
    for op in ("ArgMax", "ArgMin"):
        for opset in (7, 11, 12):
            yield Row(op, opset, [np.round(normal(3, 4, 5))], attrs={"axis": 2, "keepdims": 0})
        yield Row(op, 12, [np.round(normal(3, 4, 5))], attrs={"axis": 1, "select_last_index": 1})


def recurrent() -> Iterator[Row]:
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for opset in (7, 13):
            for way in ("forward", "reverse", "bidirectional"):
                k = 2 if way == "bidirectional" else 1
                weights = [normal(k, 4 * gates, 3), normal(k, 4 * gates, 4), normal(k, 8 * gates)]
                yield Row(op, opset, [normal(5, 2, 3)], weights, 2, {"hidden_size": 4, "direction": way})
    weights = [normal(1, 12, 3), normal(1, 12, 4), normal(1, 24)]
    yield Row("GRU", 7, [normal(5, 2, 3)], weights, 2, {"hidden_size": 4, "linear_before_reset": 1})


def others() -> Iterator[Row]:
    yield Row("Slice", 7, [normal(4, 5, 6)], attrs={"starts": [1, -3], "ends": [3, 9999], "axes": [0, 2]})
    yield Row("Slice", 9, [normal(4, 5, 6)], attrs={"starts": [1], "ends": [-1]})
    yield Row("Squeeze", 7, [normal(1, 3, 1)])
    yield Row("Squeeze", 11, [normal(1, 3, 1)], attrs={"axes": [-1]})
    yield Row("Unsqueeze", 7, [normal(3, 2)], attrs={"axes": [0, 3]})
    yield Row("Unsqueeze", 11, [normal(3, 2)], attrs={"axes": [-1, 0]})
    for opset in (7, 11, 12, 13, 17):
        yield Row("Split", opset, [normal(2, 6, 4)], outputs=3, attrs={"axis": 1})
    yield Row("Split", 11, [normal(2, 6, 4)], outputs=3, attrs={"axis": 1, "split": [1, 3, 2]})
    yield Row("TopK", 7, [normal(3, 9)], outputs=2, attrs={"k": 4})
    yield Row("TopK", 10, [normal(3, 9)], [ints(3)], 2)
    yield Row("OneHot", 9, [ints(0, -1, 2, 5, -6)], [np.array(4), floats(0, 1)])
    yield Row("Scatter", 9, [normal(4, 5)], [np.array([[1, 0, 2]]), normal(1, 3)], attrs={"axis": 0})
    boxes = np.sort(RNG.random((1, 20, 2, 2)).astype(np.float32), axis=2).reshape(1, 20, 4)
    scores = RNG.random((1, 2, 20)).astype(np.float32)
    for opset in (10, 11):
        yield Row("NonMaxSuppression", opset, [boxes, scores], [ints(3), floats(0.4), floats(0.1)])
    regions = [floats(0, 0, 5, 5, 1, 2, 7, 6).reshape(2, 4), ints(0, 0)]
    yield Row("RoiAlign", 10, [normal(1, 2, 8, 8)], regions, attrs={"output_height": 3, "output_width": 3})
    grid = (RNG.random((1, 5, 5, 2)) * 2.6 - 1.3).astype(np.float32)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            yield Row("GridSample", 16, [normal(1, 2, 6, 6)], [grid], attrs={"mode": mode, "padding_mode": padding})
    yield Row("GridSample", 16, [normal(1, 2, 6, 6)], [grid])
    yield Row("DFT", 17, [normal(1, 8, 1)], attrs={"onesided": 1})
    yield Row("DFT", 17, [normal(2, 6, 8, 2)], attrs={"axis": 1, "inverse": 1})
    yield Row("DFT", 19, [normal(1, 8, 1)], [np.array(6)])
    for opset in (11, 13, 18):
        yield Row("Pad", opset, [normal(2, 3, 4)], [ints(0, 1, 1, 0, 0, 2)], attrs={"mode": "reflect"})
    yield Row("QuantizeLinear", 10, [normal(2, 3)], [np.float32(0.02), np.uint8(120)])
    yield Row("DequantizeLinear", 10, [np.arange(6, dtype=np.uint8)], [floats(0.02), np.array([3], np.uint8)])
    for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
        for opset in (7, 9, 13):
            yield Row("Cast", opset, [normal(3, 4) * 100], attrs={"to": kind})
    yield Row("Mod", 10, [normal(3, 4)], [floats(0.7)], attrs={"fmod": 1})
    yield Row("CumSum", 11, [normal(3, 4)], [np.array(1)], attrs={"exclusive": 1, "reverse": 1})
    yield Row("PRelu", 7, [normal(2, 3, 4, 4)], [normal(3, 1, 1)])
    yield Row("Gemm", 7, [normal(3, 4)], [normal(5, 4), normal(5)], attrs={"transB": 1, "alpha": 0.5, "beta": 2.0})
    yield Row("MeanVarianceNormalization", 9, [normal(2, 3, 4, 4)], attrs={"axes": [0, 2, 3]})
    yield Row("LRN", 7, [normal(1, 6, 4, 4)], attrs={"size": 3})
    transposed = {"output_shape": [10, 11], "strides": [2, 2], "auto_pad": "SAME_LOWER"}
    yield Row("ConvTranspose", 7, [normal(1, 4, 5, 5)], [normal(4, 3, 3, 3)], attrs=transposed)


ROWS = list(rows())
