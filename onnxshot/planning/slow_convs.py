"""Convs with so few channels, and average pools, that ONNX Runtime's int8 kernels are slower than its float ones.

Measured by benchmarks/thin_convs.py: kernel times with the Q, DQ and changes of layout that each choice brings. Float
kernels work on blocks of 16 channels, int8 ones gather the values under a kernel into rows first, at a cost that only
many output channels pay back; of a grouped Conv they do so group by group, and in 3 dimensions in a slow way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxshot.graph import Constant, Node
from onnxshot.graph.ops import STANDARD_DOMAINS

_FEW_PRODUCTS = 96  # in x out channels: 0.3x to 0.9x where one side of it is float, 0.5x to 1.3x between int8 ops
_FEW_INS = 12
_LIGHT, _LIGHT_OF_PICTURES = 1 << 10, 1 << 13  # multiply-accumulates for each position
_RARE = 8  # one thin Conv in so many is left float: where there are more of them, the net is thin


@dataclass(frozen=True, slots=True)
class ConvSize:
    """Of a Conv: spatial dimensions, channels in and out of one group, groups, values under the kernel."""

    dims: int
    ins: int
    outs: int
    groups: int
    taps: int

    @classmethod
    def of(cls, node: Node) -> ConvSize | None:
        """The size of a Conv with a constant weight; None of everything else."""
        weight = node.inputs[1] if node.op == "Conv" and len(node.inputs) > 1 else None
        if not isinstance(weight, Constant) or len(weight.shape) < 3:
            return None
        groups = max(1, int(node.attrs.get("group", 1)))
        outs, ins, *kernel = (int(size) for size in weight.shape)
        return cls(len(kernel), ins, outs // groups, groups, math.prod(kernel))

    @property
    def depthwise(self) -> bool:
        """Whether each output reads one channel of its own."""
        return self.ins == self.outs == 1


def slower_in_int8(size: ConvSize) -> str:
    """Why a Conv is slower in int8 even between int8 ops; empty where it is not."""
    if size.depthwise:
        few = 17 if size.dims == 3 else 32 if size.taps > 9 else 0
        few = 64 if size.dims == 2 and size.taps > 25 else few
        if size.dims > 1 and size.groups < few:
            channels = "1 channel" if size.groups == 1 else f"{size.groups} channels"
            return f"depthwise with {channels}: int8 runs at 0.3x to 0.9x of float"
    elif size.groups > 1:
        least = min(size.ins, size.outs)
        if least <= 8 or (size.dims == 3 and size.taps > 1 and least < 16):
            return f"grouped with {least} channels a group: int8 runs at 0.1x to 1.0x of float"
    elif size.dims == 3 and size.taps > 1 and (size.ins < 8 or size.ins * size.outs < 256):
        return f"in 3 dimensions with {size.ins} channels in and {size.outs} out: int8 runs at 0.2x to 0.8x of float"
    return ""


def slower_at_floats(size: ConvSize) -> str:
    """Why a Conv is slower in int8 next to a float op, whose values are quantized for it alone; empty where not."""
    if size.depthwise:
        return "depthwise" if size.dims == 2 else ""
    if size.groups > 1:
        least = min(size.ins, size.outs)
        return f"grouped with {least} channels a group" if least <= 16 else ""
    return ""


def is_thin(size: ConvSize) -> bool:
    """Whether a plain Conv multiplies few channels with few, as the first one of most nets does."""
    few = size.ins <= _FEW_INS and size.ins * size.outs <= _FEW_PRODUCTS
    return size.groups == 1 and not size.depthwise and few


def is_light(size: ConvSize) -> bool:
    """Whether a Conv is too little work for a Q in front and a DQ behind, where it stands between float ops.

    With few channels in, as of a picture's patches, int8 gathers them slowly. Measured 0.3x to 1.1x.
    """
    work = size.ins * size.outs * size.taps
    return size.groups == 1 and work <= (_LIGHT_OF_PICTURES if size.ins <= 4 else _LIGHT)


def is_rare(thin: int, static: int) -> bool:
    """Whether so few of the static Convs are thin that the rest of the net decides its speed."""
    return thin * _RARE <= static


def pools_slower(node: Node, shape: Sequence[int | str | None] | None) -> str:
    """Why an AveragePool is slower in int8 even between int8 ops; empty where it is not. shape: of its output.

    The int8 kernel adds the values of each window one by one, at 0.5 ns each; the float one is vectorized. Measured
    with the DQ, the Q and the changes of layout that float brings, windows of 1 to 7 along an axis, 3 to 2048 channels.
    Where one window covers the whole picture there is so little to write that int8 is 1.3x to 2x as fast, as it is for
    GlobalAveragePool.
    """
    if node.op != "AveragePool" or node.domain not in STANDARD_DOMAINS:
        return ""
    if shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:]):
        return ""
    return "int8 AveragePool runs at 0.2x to 0.8x of float"
