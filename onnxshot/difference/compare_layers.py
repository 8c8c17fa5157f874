"""Two lists of layers held against each other: which belong together, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.difference.read_layers import Layer
from onnxshot.graph import Node, weights
from onnxshot.graph.weight_sparsity import outputs_first
from onnxshot.maths.affine import QuantParams
from onnxshot.maths.sqnr import sqnr_db
from onnxshot.planning.trained_scales import Trained

_CODES = 127  # of int8 on either side of zero
_SUFFIXES = ("_quantized", "_quant")  # that operators on integers get, here and by onnxruntime


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer of both files that is not the same in both.

    Attributes:
        node, op: as the first file has it; changes: type, scale, mask, shape and values, as far as they differ.
        before, after: what it computes in, such as 'float32', 'static uint8 x int8', 'weights int8'.
        shape_before, shape_after: of the weight with its outputs first, [O, I, *k].
        sqnr_db: of the weight, dequantized, against that of the first file; None where the shapes differ.
        sparsity_before, sparsity_after: share 0..1 of zeros.
        zeros_made, zeros_lost: weights that became zero, and that are zero no more. Where one is quantized, what is
            within one step of zero may have been rounded: it is in the sparsity, and not counted here.
        scale_ratio: scale of the weight after over before, of the channel where it is farthest from 1.
        zero_shift: largest difference of its zero points, in steps; signed and unsigned types are counted alike.
    """

    node: str
    op: str
    changes: tuple[str, ...]
    before: str
    after: str
    shape_before: tuple[int, ...] | None = None
    shape_after: tuple[int, ...] | None = None
    sqnr_db: float | None = None
    sparsity_before: float | None = None
    sparsity_after: float | None = None
    zeros_made: int = 0
    zeros_lost: int = 0
    scale_ratio: float | None = None
    zero_shift: int | None = None


@dataclass(frozen=True, slots=True)
class PairChange:
    """An activation that is quantized in both files, otherwise; the type is that of its integers."""

    tensor: str
    before: str
    after: str
    scale_before: float
    scale_after: float
    scale_ratio: float
    zero_shift: int


Pairs = list[tuple[Layer, Layer]]


def matched(before: Sequence[Layer], after: Sequence[Layer]) -> tuple[Pairs, list[Node], list[Node]]:
    """Layers that belong together, and the nodes that only the first and only the second file has.

    They belong together where they make a tensor of the same name, else where they have a name and an operator alike;
    what operators on integers have behind their name does not count.
    """
    rest = {id(layer): layer for layer in after}
    by_tensor = {name: layer for layer in reversed(after) for name in reversed(layer.names)}
    by_name = {_name(layer): layer for layer in after}
    pairs: Pairs = []
    left: list[Layer] = []
    for one in before:
        candidates = (by_tensor.get(name) for name in one.names)
        found = next((x for x in candidates if x is not None and id(x) in rest and _alike(one, x)), None)
        if found is None:
            left.append(one)
        else:
            pairs.append((one, rest.pop(id(found))))
    only = []
    for one in left:
        found = by_name.get(_name(one))
        if found is not None and id(found) in rest:
            pairs.append((one, rest.pop(id(found))))
        else:
            only.append(one.node)
    # A product and its bias are one layer, although one file may have them as two nodes.
    biases = {x.bias for pair in pairs for x in pair if x.bias is not None and pair[0].node.op != pair[1].node.op}
    order = {id(layer): i for i, layer in enumerate(before)}
    pairs.sort(key=lambda pair: order[id(pair[0])])
    return pairs, [n for n in only if n not in biases], [x.node for x in rest.values() if x.node not in biases]


def _name(layer: Layer) -> tuple[str, str]:
    label = layer.node.label
    for suffix in _SUFFIXES:
        label = label.removesuffix(suffix)
    return label, layer.node.op


def _alike(one: Layer, other: Layer) -> bool:
    """Whether a tensor of the same name makes them the same layer: an Add is not the product in front of it."""
    return one.node.op == other.node.op or (one.slot is not None and other.slot is not None)


def layer_change(one: Layer, other: Layer, scaled: Any = 1.0) -> LayerChange | None:
    """What differs between a layer of both files; None where nothing does.

    scaled: what the second weight, outputs first, was multiplied by where channels were equalized or smoothed; its
    values are compared without.
    """
    changes = ["type"] if one.precision != other.precision or one.node.op != other.node.op else []
    op = one.node.op if one.node.op == other.node.op else f"{one.node.op} -> {other.node.op}"
    facts: dict[str, Any] = {}
    if one.slot is not None and other.slot is not None:
        a, b = _table(one), _table(other)
        facts = {"shape_before": a.shape, "shape_after": b.shape}
        facts |= {"sparsity_before": _sparsity(a), "sparsity_after": _sparsity(b)}
        ratio, shift = scale_change(one.params, other.params)
        if (ratio is not None and ratio != 1.0) or shift:
            changes.append("scale")
        facts |= {"scale_ratio": ratio, "zero_shift": shift}
        if a.shape != b.shape:
            changes.append("shape")
        else:
            step = np.maximum(_step(one, a), _step(other, b) / scaled)
            b = (b / scaled).astype(np.float32)
            made = int(np.count_nonzero((b == 0) & (np.abs(a) > step)))
            lost = int(np.count_nonzero((a == 0) & (np.abs(b) > step)))
            facts |= {"sqnr_db": sqnr_db(a, b), "zeros_made": made, "zeros_lost": lost}
            changes += ["mask"] if made or lost else []
            changes += ["values"] if not np.array_equal(a, b) else []
    return LayerChange(one.node.label, op, tuple(changes), one.precision, other.precision, **facts) if changes else None


def _table(layer: Layer) -> NDArray[np.float32]:
    """The weight with its outputs first; an embedding as it is."""
    assert layer.slot is not None
    values = np.asarray(weights.read(layer.node.inputs[layer.slot]), np.float32)
    known = layer.node.op != "Gather" and values.ndim >= 2
    return outputs_first(layer.node, layer.slot, values) if known else values


def _sparsity(table: NDArray[np.float32]) -> float:
    return float(np.count_nonzero(table == 0)) / max(table.size, 1)


def _step(layer: Layer, table: NDArray[np.float32]) -> Any:
    """Values up to this, by output, may have been rounded to zero: the scale, or that of int8 where it is not known."""
    if layer.precision.startswith(("float", "bfloat")):
        return 0.0
    shape = [-1 if i == 0 else 1 for i in range(table.ndim)]
    if layer.params is None:
        return np.abs(table).reshape(len(table), -1).max(axis=1, initial=0.0).reshape(shape) / _CODES
    scale = layer.params.scale.reshape(-1)
    return scale.reshape(shape) if scale.size == len(table) else float(scale.max())


def scale_change(one: QuantParams | None, other: QuantParams | None) -> tuple[float | None, int | None]:
    """Ratio of the scales where it is farthest from 1, and difference of zero points; None where they do not compare.

    A scale per tensor is held against each of those per channel.
    """
    if one is None or other is None:
        return None, None
    a, b = (p.scale.reshape(-1).astype(np.float64) for p in (one, other))
    if 1 not in (a.size, b.size) and a.size != b.size:
        return None, None
    ratios = b / a
    shifts = _offsets(other) - _offsets(one)
    return float(ratios[np.abs(np.log(ratios)).argmax()]), int(np.abs(shifts).max())


def _offsets(params: QuantParams) -> NDArray[np.int64]:
    """Zero points counted from the lowest code: 128 of uint8 and 0 of int8 are the same."""
    kind = params.scheme.dtype
    if kind.floating:
        return np.zeros(1, np.int64)
    return params.zero_point.reshape(-1).astype(np.int64) - kind.qmin


def pair_changes(before: Trained, after: Trained) -> tuple[PairChange, ...]:
    """Activations quantized in both files whose type, scale or zero point differs; the largest ratio first."""
    rows = []
    for name, one in before.activations.items():
        other = after.activations.get(name)
        ratio, shift = scale_change(one, other)
        if other is None or ratio is None or shift is None:
            continue
        kinds = one.scheme.dtype.name, other.scheme.dtype.name
        if ratio != 1.0 or shift or kinds[0] != kinds[1]:
            rows.append(PairChange(name, *kinds, float(one.scale), float(other.scale), ratio, shift))
    return tuple(sorted(rows, key=lambda row: -abs(np.log(row.scale_ratio))))
