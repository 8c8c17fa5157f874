"""Match the layers of two models, and find what differs between them."""

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
_SUFFIXES = ("_quantized", "_quant")  # added to names of integer operators, by onnxshot and onnxruntime


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer that differs between two files.

    Attributes:
        node: Its name in the first file.
        op: Its operator in the first file.
        changes: Those of "type", "scale", "mask", "shape" and "values" that differ.
        before: What it computes in, in the first file, such as "float32", "static uint8 x int8" or "weights int8".
        after: The same in the second file.
        shape_before: Shape of the weight, outputs first, [O, I, *kernel].
        shape_after: The same in the second file.
        sqnr_db: SQNR in dB of the dequantized weight, with the first file's as signal; None if the shapes differ.
        sparsity_before: Share of zeros in the weight, 0..1.
        sparsity_after: The same in the second file.
        zeros_made: Number of weights that became zero. In a quantized layer, values within one step of zero are not
            counted, as rounding may explain them. They are part of the sparsity.
        zeros_lost: Number of weights that are no longer zero, counted likewise.
        scale_ratio: Scale of the weight in the second file over the first, for the channel where it is furthest from 1.
        zero_shift: Largest difference of the zero points, in steps, counted from the lowest code of each type.
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
    """An activation that is quantized in both files, but differently.

    Attributes:
        tensor: Its name.
        before: Integer type in the first file.
        after: Integer type in the second file.
        scale_before: Scale in the first file.
        scale_after: Scale in the second file.
        scale_ratio: The second scale over the first.
        zero_shift: Difference of the zero points, in steps.
    """

    tensor: str
    before: str
    after: str
    scale_before: float
    scale_after: float
    scale_ratio: float
    zero_shift: int


Pairs = list[tuple[Layer, Layer]]


def matched(before: Sequence[Layer], after: Sequence[Layer]) -> tuple[Pairs, list[Node], list[Node]]:
    """Match the layers of two models.

    Layers match if they make a tensor of the same name, otherwise if name and operator are equal. Suffixes that integer
    operators add to names are ignored.

    Returns:
        Pairs of layers, nodes that only the first model has, and nodes that only the second has.
    """
    rest = {id(layer): layer for layer in after}
    by_tensor = {name: layer for layer in reversed(after) for name in reversed(layer.names)}
    by_name = {_name(layer): layer for layer in after}
    pairs: Pairs = []
    left: list[Layer] = []
    for one in before:
        candidates = (by_tensor.get(name) for name in one.names)
        found = next((x for x in candidates if x is not None and id(x) in rest and _same_layer(one, x)), None)
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


def _same_layer(one: Layer, other: Layer) -> bool:
    """Whether a tensor name in common makes them the same layer: an Add is not the product before it."""
    return one.node.op == other.node.op or (one.slot is not None and other.slot is not None)


def layer_change(one: Layer, other: Layer, scaled: Any = 1.0) -> LayerChange | None:
    """What differs between two matched layers; None if nothing does.

    Args:
        one: The layer in the first file.
        other: The layer in the second file.
        scaled: Factor of the second weight, outputs first, from equalization or smoothing. It is undone before the
            values are compared.
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
    """The weight, outputs first; the table of an embedding unchanged."""
    assert layer.slot is not None
    values = np.asarray(weights.read(layer.node.inputs[layer.slot]), np.float32)
    known = layer.node.op != "Gather" and values.ndim >= 2
    return outputs_first(layer.node, layer.slot, values) if known else values


def _sparsity(table: NDArray[np.float32]) -> float:
    return float(np.count_nonzero(table == 0)) / max(table.size, 1)


def _step(layer: Layer, table: NDArray[np.float32]) -> Any:
    """Magnitude up to which values may have been rounded to zero, by output.

    It is the scale, or the scale of int8 if the scale is unknown.
    """
    if layer.precision.startswith(("float", "bfloat")):
        return 0.0
    shape = [-1 if i == 0 else 1 for i in range(table.ndim)]
    if layer.params is None:
        return np.abs(table).reshape(len(table), -1).max(axis=1, initial=0.0).reshape(shape) / _CODES
    scale = layer.params.scale.reshape(-1)
    return scale.reshape(shape) if scale.size == len(table) else float(scale.max())


def scale_change(one: QuantParams | None, other: QuantParams | None) -> tuple[float | None, int | None]:
    """Ratio of the scales where it is furthest from 1, and largest difference of the zero points.

    A per-tensor scale is compared with each per-channel scale.

    Returns:
        None for both if they cannot be compared.
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
    """Zero points counted from the lowest code: 128 of uint8 equals 0 of int8."""
    kind = params.scheme.dtype
    if kind.floating:
        return np.zeros(1, np.int64)
    return params.zero_point.reshape(-1).astype(np.int64) - kind.qmin


def pair_changes(before: Trained, after: Trained) -> tuple[PairChange, ...]:
    """Activations quantized in both files with another type, scale or zero point, largest ratio first."""
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
