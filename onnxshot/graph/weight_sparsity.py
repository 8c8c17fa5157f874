"""Sparsity of a model's weights: how many zeros, in which pattern, and what each target gains from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import weight_slot
from onnxshot.graph.weight_pieces import rows
from onnxshot.maths import sparsity_patterns
from onnxshot.wording import counted

_MOST_BYTES = 256 << 20  # of weights that are compressed: it takes a second for some 30 MB
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WIDE = 256  # inputs: no gain was measured with fewer (NVIDIA/TensorRT issue 4065)
_HALF = ("2:4", "1:4")
_FEW = 0.01  # share of zeros
_LOOK = 1 << 16  # values of a weight of a large model that are looked at first
_LEVEL = 6  # of zlib, the default of gzip
_SAMPLED, _PIECES = 1 << 18, 16  # bytes of a weight that are compressed at most, and the pieces they are


@dataclass(frozen=True, slots=True)
class Layer:
    """The sparsity of one weight.

    Attributes:
        node: label of the node that reads it.
        op: operator of that node.
        shape: shape as stored.
        inputs: number of input channels, per group.
        parameters: number of values.
        macs: multiply-accumulates of the node in one run.
        sparsity: share of zeros, 0 to 1; for a quantized weight, of values equal to the zero point.
        pattern: "dense", "unstructured", "channels", "2:4", "1:4" or "block:4x1".
        bytes: size as stored.
        packed_bytes: size compressed with gzip; of a weight with more than 256 KB, estimated from evenly spread pieces.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    inputs: int
    parameters: int
    macs: int
    sparsity: float
    pattern: str
    bytes: int
    packed_bytes: int


def layers_of(model: Model, macs: Mapping[str, int]) -> tuple[Layer, ...]:
    """Return the sparsity of the weights of Conv, Gemm, MatMul and similar nodes, float or int8, in graph order.

    Args:
        model: the model. With more than 256 MB of weights, nothing is measured where less than 1 % of the first values
            of its weights are zero.
        macs: multiply-accumulates by node label.
    """
    share = min(1.0, _MOST_BYTES / max(model.weight_bytes(), 1))
    if share < 1 and _zeros_at_first(model) < _FEW:
        return ()
    return tuple(_layer(*found, macs.get(found[0].label, 0), share) for found in _weights(model))


def _zeros_at_first(model: Model) -> float:
    """Share of zeros in the first rows of all weights."""
    zeros = total = 0
    for constant in model.constants():
        if len(constant.shape) >= 2 and math.prod(constant.shape) and weights.elem_type(constant) != TensorProto.STRING:
            first = rows(constant, 0, max(_LOOK // math.prod(constant.shape[1:]), 1))
            zeros += first.size - int(np.count_nonzero(first))
            total += first.size
    return zeros / total if total else 0.0


def nodes_with_2_4_zeros(model: Model) -> list[Node]:
    """Return the nodes whose weight has the 2:4 pattern of sparse tensor cores: 2 of every 4 inputs are zero."""
    found = ((node, outputs_first(node, slot, alive)) for node, slot, _, alive in _weights(model))
    return [node for node, table in found if sparsity_patterns.pattern(table) in _HALF]


def sparsity_notes(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """Describe in sentences what each target gains from the zeros; empty where less than 1 % are zero."""
    zeros = sum(layer.sparsity * layer.parameters for layer in layers)
    total = sum(layer.parameters for layer in layers)
    if not total or zeros < _FEW * total:
        return ()
    stored, packed = (sum(sizes) for sizes in zip(*((x.bytes, x.packed_bytes) for x in layers), strict=True))
    lines = [
        f"{100 * zeros / total:.1f} % of the weights are zero",
        f"ONNX Runtime on CPUs: no faster; compressed for download {packed / 1e6:.2f} MB, of {stored / 1e6:.2f} MB",
    ]
    halves = [layer for layer in layers if layer.pattern in _HALF]
    if halves:
        work = max(sum(layer.macs for layer in layers), 1)
        share, wide = (sum(x.macs for x in halves if x.inputs >= least) / work for least in (0, _WIDE))
        which = f"{counted(len(halves), 'weight')} {'has' if len(halves) == 1 else 'have'} the 2:4 pattern"
        lines.append(
            f"TensorRT: {which} of sparse tensor cores, {100 * share:.0f} % of the "
            f"multiply-accumulates; {100 * wide:.0f} % are of {_WIDE} inputs or more, where it was measured to help"
        )
        if any(layer.bytes == layer.parameters for layer in halves):
            lines.append("TensorRT was seen not to use 2:4 behind Q/DQ pairs: time it before relying on both")
    else:
        lines.append("TensorRT: no weight has the 2:4 pattern that sparse tensor cores need")
    dead = [layer for layer in layers if layer.pattern == sparsity_patterns.CHANNELS]
    if dead:
        lines.append(f"whole channels of {len(dead)} weights are zero: removing them would make the model faster")
    return tuple(lines)


def _weights(model: Model) -> Iterator[tuple[Node, int, NDArray[Any], NDArray[Any]]]:
    """Yield (node, slot, stored values, mask of values that are not zero) for every node with a constant weight."""
    for _, node in model.walk():
        slot = weight_slot(node)
        if slot is not None:
            stored = np.asarray(weights.read(node.inputs[slot]))
            if stored.ndim >= 2:
                yield node, slot, stored, stored != 0
        elif node.op in _WITH_WEIGHTS and len(node.inputs) > 1:
            maker = edit.producer(node.inputs[1])
            integers = _behind_cast(maker)
            if integers is not None:
                yield node, 1, integers, integers != 0
                continue
            if maker is None or maker.op != "DequantizeLinear" or not isinstance(maker.inputs[0], Constant):
                continue
            stored, zero = np.asarray(weights.read(maker.inputs[0])), edit.constant_input(maker, 2)
            if stored.ndim < 2 or (zero is not None and not _fits(zero, maker, stored)):
                continue
            yield node, 1, stored, stored != (0 if zero is None else _along(zero, maker, stored.ndim))


def _behind_cast(rescale: Node | None) -> NDArray[Any] | None:
    """The constant integers of Mul(Cast(integers), scales); None where the node is something else."""
    cast = edit.producer(rescale.inputs[0]) if rescale is not None and rescale.op == "Mul" else None
    values = edit.constant_input(cast, 0) if cast is not None and cast.op == "Cast" else None
    return values if values is not None and values.dtype.kind == "i" and values.ndim >= 2 else None


def _fits(zero: NDArray[Any], dequantize: Node, stored: NDArray[Any]) -> bool:
    """Whether there is one zero point, or one per channel; an invalid model may have another number."""
    return zero.size in (1, stored.shape[int(dequantize.attrs.get("axis", 1)) % stored.ndim])


def _along(zero: NDArray[Any], dequantize: Node, rank: int) -> NDArray[Any]:
    """Zero points in a shape that broadcasts against the stored weight."""
    if zero.size == 1:
        return zero.reshape(())
    axis = int(dequantize.attrs.get("axis", 1)) % rank
    return zero.reshape([-1 if i == axis else 1 for i in range(rank)])


def outputs_first(node: Node, slot: int, values: NDArray[Any]) -> NDArray[Any]:
    """Return a view of a weight with outputs on axis 0 and inputs on axis 1."""
    if node.op == "Gemm":
        turned = bool(node.attrs.get("transB" if slot == 1 else "transA", 0)) == (slot == 1)
        return values if turned else values.T
    if node.op == "MatMul" and slot == 1:
        return np.swapaxes(values, -1, -2).reshape(-1, values.shape[-2])
    return np.swapaxes(values, 0, 1) if node.op == "ConvTranspose" else values


def _layer(node: Node, slot: int, stored: NDArray[Any], alive: NDArray[Any], macs: int, share: float) -> Layer:
    """share: how much of the weight is compressed, at most."""
    table = outputs_first(node, slot, alive)
    some = _pieces(stored, max(math.ceil(stored.size * share), 1))
    packed = len(zlib.compress(some, _LEVEL)) * stored.nbytes // max(len(some), 1)
    return Layer(
        node.label, node.op, tuple(stored.shape), table.shape[1], stored.size, macs, sparsity_patterns.sparsity(table),
        sparsity_patterns.pattern(table), stored.nbytes, min(packed, stored.nbytes),
    )  # fmt: skip


def _pieces(stored: NDArray[Any], most: int) -> bytes:
    """The values of a weight, or evenly spread pieces of a large one with up to `most` values in all."""
    flat = np.ascontiguousarray(stored).reshape(-1)
    most = min(most, _SAMPLED // max(flat.itemsize, 1))
    if flat.size <= most:
        return flat.tobytes()
    length = max(most // _PIECES, 1)
    starts = np.linspace(0, flat.size - length, min(_PIECES, most)).astype(np.int64)
    return b"".join(flat[start : start + length].tobytes() for start in starts)


def lost_zeros(before: Model, after: Model) -> list[str]:
    """Return the labels of nodes whose weight has lost a zero from `before` to `after`, which may be quantized."""
    now = {node.label: outputs_first(node, slot, alive) for node, slot, _, alive in _weights(after)}
    lost = []
    for node, slot, _, alive in _weights(before):
        found, table = now.get(node.label), outputs_first(node, slot, alive)
        if found is not None and (found.shape != table.shape or bool((found & ~table).any())):
            lost.append(node.label)
    return lost
