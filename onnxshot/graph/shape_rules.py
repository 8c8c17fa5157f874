"""Output shapes of operators where sizes may be symbolic: one function per kind of operator, one table row each.

A rule returns the shape of the first output, or None where ONNX's own inference is as good. Source: ONNX Operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxshot.graph.symbolic_dims import Dim, divided, either, entries, equal, is_known, is_size, steps, unknown_size

Array = NDArray[Any]
Dims = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """The inputs of a rule.

    Attributes:
        attrs: attributes of the node.
        shapes: shape of each input; None where its rank is unknown or the input is absent.
        values: values of each input; None where they are unknown.
        opset: version of the default operator set.
    """

    attrs: Mapping[str, Any]
    shapes: tuple[Dims | None, ...]
    values: tuple[Array | None, ...]
    opset: int

    def shape(self, slot: int) -> Dims | None:
        """Shape of an input; None where its rank is unknown or the input is absent."""
        return self.shapes[slot] if slot < len(self.shapes) else None

    def value(self, slot: int) -> Array | None:
        """Values of an input; None where they are unknown or the input is absent."""
        return self.values[slot] if slot < len(self.values) else None

    def numbers(self, slot: int) -> list[Any] | None:
        """Values of an input as a flat list."""
        held = self.value(slot)
        return None if held is None else entries(held)

    def count(self, slot: int) -> int | None:
        """Length of a one-dimensional input; None where it is unknown."""
        shape = self.shape(slot)
        return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


Rule = Callable[[Given], Dims | None]


def _size(value: Any) -> Dim:
    """The number as a size: a new unknown size where it may be negative."""
    return value if is_size(value) else unknown_size()


def _reshape(given: Given) -> Dims | None:
    x, target = given.shape(0), given.numbers(1)
    if "shape" in given.attrs:
        target = list(given.attrs["shape"])
    if target is None:
        count = given.count(1)
        return None if count is None else tuple(unknown_size() for _ in range(count))
    if x is None:
        return tuple(d if isinstance(d, int) and d > 0 else unknown_size() for d in target)
    if not given.attrs.get("allowzero", 0):
        target = [x[i] if equal(d, 0) and i < len(x) else d for i, d in enumerate(target)]
    free = [i for i, d in enumerate(target) if not is_size(d)]
    if len(free) == 1:  # -1, or the only entry that may be it
        rest, total = math.prod((d for i, d in enumerate(target) if i != free[0]), start=1), math.prod(x, start=1)
        target[free[0]] = left if (left := divided(total, rest) if not equal(rest, 0) else None) is not None else -1
    return tuple(_size(d) for d in target)


def broadcast(a: Dims, b: Dims) -> Dims:
    """Return the shape that two shapes broadcast to (ONNX multidirectional broadcasting)."""
    wide = max(len(a), len(b))
    found: list[Dim] = []
    for x, y in zip((1,) * (wide - len(a)) + a, (1,) * (wide - len(b)) + b, strict=True):
        if x == 1 or x == y:
            found.append(y)
        elif y == 1 or (isinstance(x, int) and not isinstance(y, int)):
            found.append(x)
        elif isinstance(y, int) and not isinstance(x, int):
            found.append(y)
        else:
            found.append(either(x, y))
    return tuple(found)


def _expand(given: Given) -> Dims | None:
    x, target = given.shape(0), given.numbers(1)
    if x is None or target is None:
        return None
    return broadcast(x, tuple(_size(d) for d in target))


def _filled(given: Given) -> Dims | None:
    target = given.numbers(0)
    return None if target is None else tuple(_size(d) for d in target)


def _tile(given: Given) -> Dims | None:
    x, times = given.shape(0), given.numbers(1)
    if x is None or times is None or len(times) != len(x):
        return None
    return tuple(_size(d * t) for d, t in zip(x, times, strict=True))


def _pad(given: Given) -> Dims | None:
    x = given.shape(0)
    pads = list(given.attrs["pads"]) if "pads" in given.attrs else given.numbers(1)
    if x is None or pads is None:
        return None if x is None else tuple(unknown_size() for _ in x)
    axes = given.numbers(3) if given.value(3) is not None else list(range(len(x)))
    if axes is None or len(pads) != 2 * len(axes):
        return None
    found = list(x)
    for i, axis in enumerate(axes):
        found[int(axis)] = _size(found[int(axis)] + pads[i] + pads[i + len(axes)])
    return tuple(found)


def _resize(given: Given) -> Dims | None:
    x, sizes, scales = given.shape(0), given.numbers(3), given.value(2)
    if x is None or "axes" in given.attrs or given.attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    if sizes:
        return tuple(_size(d) for d in sizes) if len(sizes) == len(x) else None
    if all(isinstance(d, int) for d in x):
        return None  # ONNX rounds as runtimes do
    if scales is None or len(scales) != len(x) or not is_known(scales):
        return tuple(unknown_size() for _ in x)
    whole = zip(x, scales.tolist(), strict=True)
    return tuple(_size(dim * int(scale)) if scale == int(scale) else unknown_size() for dim, scale in whole)


def _range(given: Given) -> Dims | None:
    start, limit, step = (given.numbers(i) for i in range(3))
    if not start or not limit or not step:
        return (unknown_size(),)
    if all(isinstance(v, int | float) for v in (start[0], limit[0], step[0])):
        return (max(0, math.ceil((limit[0] - start[0]) / step[0])),) if step[0] else None
    return (_size(limit[0] - start[0]),) if step[0] == 1 else (unknown_size(),)


def _slice(given: Given) -> Dims | None:
    x = given.shape(0)
    if x is None or "starts" in given.attrs:
        return None  # attributes: ONNX's inference is as good
    starts, ends, steps = given.numbers(1), given.numbers(2), given.numbers(4)
    axes = given.numbers(3) if len(given.shapes) > 3 and given.shapes[3] is not None else None
    if given.count(1) is not None and axes is None and (len(given.shapes) < 4 or given.shapes[3] is None):
        axes = list(range(given.count(1) or 0))
    if axes is None:
        return tuple(unknown_size() for _ in x)
    found = list(x)
    for i, axis in enumerate(axes):
        at = int(axis) % len(x)
        start, end = (None if held is None else held[i] for held in (starts, ends))
        step = 1 if steps is None and (len(given.shapes) < 5 or given.shapes[4] is None) else steps and steps[i]
        found[at] = sliced(x[at], start, end, step)
    return tuple(found)


def sliced(size: Dim, start: Any, end: Any, step: Any) -> Dim:
    """Return the size of an axis after Slice; start, end and step are None where unknown."""
    if start is None or end is None or not isinstance(step, int):
        return unknown_size()
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        stop = None if step < 0 and end < -size else end
        return len(range(size)[slice(start, stop, step)]) if step else unknown_size()
    if step != 1:
        return unknown_size()
    first, last = _place(size, start), _place(size, end)
    return unknown_size() if first is None or last is None or not is_size(last - first) else last - first


def _place(size: Dim, at: Any) -> Dim | None:
    """A Slice's start or end as a position from 0 to the size; negative values count from the end. None if unknown."""
    if isinstance(at, int) and at >= 1 << 31:
        return size
    if is_size(at):
        return at if is_size(size - at) else size if is_size(at - size) else None
    if is_size(at * -1):
        back: Dim = size + at
        return back if is_size(back) else None
    return None


def _window(given: Given) -> Dims | None:
    """Conv, MaxPool and AveragePool on symbolic spatial sizes: the number of window positions."""
    x, w = given.shape(0), given.shape(1)
    if x is None or len(x) < 3 or all(isinstance(d, int) for d in x):
        return None
    count = len(x) - 2
    kernel = given.attrs.get("kernel_shape") or (w[2:] if w is not None and len(w) == len(x) else None)
    if kernel is None or given.attrs.get("ceil_mode", 0):
        return None
    if given.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    strides, dilations = (given.attrs.get(key) or [1] * count for key in ("strides", "dilations"))
    pads = given.attrs.get("pads") or [0] * (2 * count)
    found: list[Dim] = []
    for i, size in enumerate(x[2:]):
        if not isinstance(kernel[i], int):
            return None
        found.append(steps(size + pads[i] + pads[i + count] - (kernel[i] - 1) * dilations[i] - 1, strides[i]) + 1)
    return (x[0], w[0] if w is not None else x[1], *found)


def _fused_matmul(given: Given) -> Dims | None:
    """com.microsoft FusedMatMul: a matrix product with transA and transB."""
    a, b = given.shape(0), given.shape(1)
    turned = any(given.attrs.get(key, 0) for key in ("transBatchA", "transBatchB"))
    if a is None or b is None or len(a) < 2 or len(b) < 2 or turned:
        return None
    rows, columns = a[-1 if given.attrs.get("transA", 0) else -2], b[-2 if given.attrs.get("transB", 0) else -1]
    return (*broadcast(a[:-2], b[:-2]), rows, columns)


def _attention(given: Given) -> Dims | None:
    """com.microsoft Attention: x [B, S, I] times w [I, Q + K + V]."""
    x, w = given.shape(0), given.shape(1)
    if x is None or w is None or len(x) != 3 or len(w) != 2:
        return None
    widths = given.attrs.get("qkv_hidden_sizes")
    third = divided(w[1], 3)
    return (*x[:2], widths[2]) if widths else None if third is None else (*x[:2], third)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "Conv", "MaxPool"), _window),
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _tile,
}
BEYOND: dict[str, Rule] = {
    **dict.fromkeys(("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul"), _fused_matmul),
    **dict.fromkeys(("Attention", "QAttention"), _attention),
}
"""Rules of com.microsoft operators, which ONNX's inference does not know."""
READS_VALUES = frozenset({
    "AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "DFT", "HammingWindow", "HannWindow", "MaxUnpool",
    "MelWeightMatrix", "OneHot", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "STFT", "Slice",
    "Split", "SplitToSequence", "Squeeze", "TopK", "Unsqueeze", "Upsample",
})  # fmt: skip
"""Operators whose output shape depends on the values of inputs."""
BROADCASTS = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
"""Elementwise operators of several inputs, which broadcast."""
STANDS_FOR = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Fused operator -> the standard operator that has the same shapes."""
LIKE_FIRST = frozenset({
    "BiasAdd", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "GroupNorm", "GroupQueryAttention", "LayerNormalization",
    "MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipGroupNorm",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
"""com.microsoft operators whose first output has the shape of their first input."""
