"""Find Convs and AveragePools for which ONNX Runtime's int8 kernels are slower than its float kernels.

Measured by benchmarks/thin_convs.py: kernel times, including the Q, DQ and layout changes of each choice. Float kernels
work on blocks of 16 channels. Int8 kernels first gather the input values of each output position into rows (im2col),
which only many output channels pay back. For grouped Convs they do this group by group, and in 3 dimensions slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxshot.graph import Constant, Node
from onnxshot.graph.ops import STANDARD_DOMAINS

_FEW_PRODUCTS = 96  # in x out channels; int8 at 0.3x to 0.9x of float next to a float op, else 0.5x to 1.3x
_FEW_INS = 12
# Multiply-accumulates per output position, with more and with up to 4 input channels.
_LIGHT, _LIGHT_OF_PICTURES = 1 << 10, 1 << 13
_RARE = 8  # at most one thin Conv in this many is left in float: with more of them, the whole net is thin


@dataclass(frozen=True, slots=True)
class ConvSize:
    """The size of a Conv.

    Attributes:
        dims: spatial dimensions: 1, 2 or 3.
        ins: input channels of one group.
        outs: output channels of one group.
        groups: number of groups.
        taps: kernel positions, for example 9 for 3x3.
    """

    dims: int
    ins: int
    outs: int
    groups: int
    taps: int

    @classmethod
    def of(cls, node: Node) -> ConvSize | None:
        """The size of a Conv with a constant weight; None for all other nodes."""
        weight = node.inputs[1] if node.op == "Conv" and len(node.inputs) > 1 else None
        if not isinstance(weight, Constant) or len(weight.shape) < 3:
            return None
        groups = max(1, int(node.attrs.get("group", 1)))
        outs, ins, *kernel = (int(size) for size in weight.shape)
        return cls(len(kernel), ins, outs // groups, groups, math.prod(kernel))

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel of its own."""
        return self.ins == self.outs == 1


def slower_in_int8(size: ConvSize) -> str:
    """Why a Conv is slower in int8 even between int8 ops; empty if it is not."""
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
        return f"3D with {size.ins} input and {size.outs} output channels: int8 runs at 0.2x to 0.8x of float"
    return ""


def slower_at_floats(size: ConvSize) -> str:
    """Why a Conv is slower in int8 next to a float op, where it needs a Q or DQ of its own; empty if it is not."""
    if size.depthwise:
        return "depthwise" if size.dims == 2 else ""
    if size.groups > 1:
        least = min(size.ins, size.outs)
        return f"grouped with {least} channels a group" if least <= 16 else ""
    return ""


def is_thin(size: ConvSize) -> bool:
    """Whether an ungrouped Conv has few input and output channels, as the first Conv of most nets."""
    few = size.ins <= _FEW_INS and size.ins * size.outs <= _FEW_PRODUCTS
    return size.groups == 1 and not size.depthwise and few


def is_light(size: ConvSize) -> bool:
    """Whether an ungrouped Conv between float ops is too little work to pay for its Q and DQ.

    With few input channels, as for the patches of an image, int8 kernels gather slowly: 0.3x to 1.1x of float.
    """
    work = size.ins * size.outs * size.taps
    return size.groups == 1 and work <= (_LIGHT_OF_PICTURES if size.ins <= 4 else _LIGHT)


def is_rare(thin: int, static: int) -> bool:
    """Whether so few of the static Convs are thin that the rest of the net decides its speed.

    Args:
        thin: number of thin Convs.
        static: number of all static Convs.
    """
    return thin * _RARE <= static


def pools_slower(node: Node, shape: Sequence[int | str | None] | None) -> str:
    """Why an AveragePool is slower in int8 even between int8 ops; empty if it is not.

    The int8 kernel adds the values of each window one by one, at 0.5 ns each; the float kernel is vectorized. Measured
    with the DQ, Q and layout changes that float needs, for windows of 1 to 7 along an axis and 3 to 2048 channels. If
    one window covers the whole input, int8 is 1.3x to 2x as fast, as for GlobalAveragePool.

    Args:
        node: any node; only a standard AveragePool has a reason.
        shape: shape of its output [N, C, ...]; None if unknown.
    """
    if node.op != "AveragePool" or node.domain not in STANDARD_DOMAINS:
        return ""
    if shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:]):
        return ""
    return "int8 AveragePool runs at 0.2x to 0.8x of float"
