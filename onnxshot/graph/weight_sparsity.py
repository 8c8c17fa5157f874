"""The weights of a model one by one: how many zeros, in which pattern, and what they are worth where."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import weight_slot
from onnxshot.maths import sparsity_patterns

_MOST_BYTES = 256 << 20  # of weights that are looked at: packing takes a second for some 30 MB
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WIDE = 256  # inputs: NVIDIA/TensorRT #4065, no gain was seen with fewer
_HALF = ("2:4", "1:4")
_LEVEL = 6  # of zlib, that of gzip


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight.

    Attributes:
        node, op: the node that reads it.
        shape: as stored.
        inputs: how many channels it reads, of one group.
        parameters, macs: values of the weight, and multiply-accumulates of one run.
        sparsity: share 0..1 of zeros; of an 8-bit weight those that stand for 0.
        pattern: dense, unstructured, channels, 2:4, 1:4 or block:4x1.
        bytes, packed_bytes: as stored, and packed as gzip does.
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
    """The weights of Conv, Gemm and MatMul, and the like, float or 8 bits, in graph order.

    Those of models with more than 256 MB of them are not looked at. macs: by name of the node.
    """
    if model.weight_bytes() > _MOST_BYTES:
        return ()
    return tuple(_layer(*found, macs.get(found[0].label, 0)) for found in _weights(model))


def nodes_with_2_4_zeros(model: Model) -> list[Node]:
    """The nodes whose weight has the pattern of sparse tensor cores: of four inputs at most two are not zero."""
    found = ((node, outputs_first(node, slot, alive)) for node, slot, _, alive in _weights(model))
    return [node for node, table in found if sparsity_patterns.pattern(table) in _HALF]


def sparsity_notes(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """What the zeros bring on each target, in words; nothing where there are none."""
    zeros = sum(layer.sparsity * layer.parameters for layer in layers)
    total = sum(layer.parameters for layer in layers)
    if not total or zeros < 0.01 * total:
        return ()
    stored, packed = (sum(sizes) for sizes in zip(*((x.bytes, x.packed_bytes) for x in layers), strict=True))
    lines = [
        f"{100 * zeros / total:.1f} % of the weights are zero",
        f"ONNX Runtime on CPUs: no faster; as a download {packed / 1e6:.2f} MB packed, of {stored / 1e6:.2f} MB",
    ]
    halves = [layer for layer in layers if layer.pattern in _HALF]
    if halves:
        work = max(sum(layer.macs for layer in layers), 1)
        share, wide = (sum(x.macs for x in halves if x.inputs >= least) / work for least in (0, _WIDE))
        lines.append(
            f"TensorRT: {len(halves)} weights have the 2:4 pattern of sparse tensor cores, {100 * share:.0f} % of the "
            f"multiply-accumulates; {100 * wide:.0f} % are of {_WIDE} inputs or more, where it was seen to help"
        )
        if any(layer.bytes == layer.parameters for layer in halves):
            lines.append("TensorRT was seen not to use 2:4 behind Q/DQ pairs: time it before relying on both")
    else:
        lines.append("TensorRT: no weight has the 2:4 pattern that sparse tensor cores need")
    dead = [layer for layer in layers if layer.pattern == sparsity_patterns.CHANNELS]
    if dead:
        lines.append(f"whole channels of {len(dead)} weights are zero: to cut them out would make the model faster")
    return tuple(lines)


def _weights(model: Model) -> Iterator[tuple[Node, int, NDArray[Any], NDArray[Any]]]:
    """Every node with a constant weight: its slot, what is stored, and what of that is not zero."""
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
    """Constant integers behind a Cast and a Mul by their scales; None where it is something else."""
    cast = edit.producer(rescale.inputs[0]) if rescale is not None and rescale.op == "Mul" else None
    values = edit.constant_input(cast, 0) if cast is not None and cast.op == "Cast" else None
    return values if values is not None and values.dtype.kind == "i" and values.ndim >= 2 else None


def _fits(zero: NDArray[Any], dequantize: Node, stored: NDArray[Any]) -> bool:
    """Whether there is one zero point, or one for each channel: a model may be wrong."""
    return zero.size in (1, stored.shape[int(dequantize.attrs.get("axis", 1)) % stored.ndim])


def _along(zero: NDArray[Any], dequantize: Node, rank: int) -> NDArray[Any]:
    """Zero points in a shape that the stored weight can be compared with."""
    if zero.size == 1:
        return zero.reshape(())
    axis = int(dequantize.attrs.get("axis", 1)) % rank
    return zero.reshape([-1 if i == axis else 1 for i in range(rank)])


def outputs_first(node: Node, slot: int, values: NDArray[Any]) -> NDArray[Any]:
    """A weight with its outputs on axis 0 and its inputs on axis 1."""
    if node.op == "Gemm":
        turned = bool(node.attrs.get("transB" if slot == 1 else "transA", 0)) == (slot == 1)
        return values if turned else values.T
    if node.op == "MatMul" and slot == 1:
        return np.swapaxes(values, -1, -2).reshape(-1, values.shape[-2])
    return np.swapaxes(values, 0, 1) if node.op == "ConvTranspose" else values


def _layer(node: Node, slot: int, stored: NDArray[Any], alive: NDArray[Any], macs: int) -> Layer:
    table = outputs_first(node, slot, alive)
    packed = len(zlib.compress(np.ascontiguousarray(stored).tobytes(), _LEVEL))
    return Layer(
        node.label, node.op, tuple(stored.shape), table.shape[1], stored.size, macs, sparsity_patterns.sparsity(table),
        sparsity_patterns.pattern(table), stored.nbytes, min(packed, stored.nbytes),
    )  # fmt: skip


def lost_zeros(before: Model, after: Model) -> list[str]:
    """Names of the nodes of both models whose weight had a zero that it has no more; the second may be quantized."""
    now = {node.label: outputs_first(node, slot, alive) for node, slot, _, alive in _weights(after)}
    lost = []
    for node, slot, _, alive in _weights(before):
        found, table = now.get(node.label), outputs_first(node, slot, alive)
        if found is not None and (found.shape != table.shape or bool((found & ~table).any())):
            lost.append(node.label)
    return lost
