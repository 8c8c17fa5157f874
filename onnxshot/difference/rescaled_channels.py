"""Find channels that were rescaled between two files, by cross-layer equalization or SmoothQuant, from their weights.

Cross-layer equalization multiplies rows of a weight and divides the matching columns of the weights that read them.
SmoothQuant divides the output of a normalization and multiplies the rows of the products after it. The outputs of the
model stay the same, but inner tensors can only be compared once the factors are undone. A factor counts only if both
sides show it: what makes the channel, and every weight that reads it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxshot import memory
from onnxshot.difference.compare_layers import Pairs, matched
from onnxshot.difference.read_layers import Layer, Layers, read_layers
from onnxshot.errors import OnnxshotError
from onnxshot.graph import Node, edit
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.weight_sparsity import outputs_first
from onnxshot.planning.channel_ties import Channels, Ids, channels_of

Floats = NDArray[np.float64]

_SAME = 0.05  # factors closer to 1 are rounding of the weights
_FIT = 0.05  # most residual energy of a fitted row, as a share; rounding to 8 bits leaves 0.001
_AGREES = 0.3  # most relative deviation of a reader's factor: its small weights were rounded too
_PRODUCTS = ("MatMul", "Gemm")
_SHARE = 8  # of `memory.held_bytes()`: the rows of a weight that are examined at once, as float64


@dataclass(frozen=True, slots=True, eq=False)
class ChannelFactors:
    """Factors of the second file's channels over the first file's.

    Attributes:
        tensors: Tensor name -> axis and factors [C], for tensors with a factor other than 1.
        made: Node name of the first file -> factors [O] of the channels it makes.
        read: Node name of the first file -> factors [I] of the channels it reads.
        form: The first file in float form, normalized. Tensor names that folding removed stand for the output of the
            node folded into. None if it was not read.
    """

    tensors: Mapping[str, tuple[int, Floats]] = field(default_factory=dict)
    made: Mapping[str, Floats] = field(default_factory=dict)
    read: Mapping[str, Floats] = field(default_factory=dict)
    form: LeanModel | None = None

    def of_weight(self, layer: Layer) -> Any:
        """Factors of the second file's weight of a layer, shaped to divide the weight with its outputs first."""
        made, read = self.made.get(layer.node.label), self.read.get(layer.node.label)
        if layer.slot is None or (made is None and read is None):
            return 1.0
        table = _weight(layer.node, layer.slot)
        assert table is not None, "it has factors, which its weight showed"
        outs = 1.0 if made is None else made.reshape(-1, *[1] * (table.ndim - 1))
        return outs / spread_inputs(table, read)

    @property
    def notes(self) -> list[str]:
        """Remarks for the report."""
        if not self.tensors:
            return []
        how = "were equalized or smoothed, and are compared at the scale they had"
        return [f"channels of {len(self.tensors)} tensors {how}: the weights around them show it"]


def factors_between(before: Path, after: Path) -> ChannelFactors:
    """Factors between two files; empty if one cannot be read layer by layer."""
    try:
        one, other = read_layers(before), read_layers(after)
    except OnnxshotError:
        return ChannelFactors()
    found = factors_of(one, matched(one.layers, other.layers)[0])
    if max(one.model.weight_bytes(), other.model.weight_bytes()) > memory.part_bytes():
        del one, other
        gc.collect()  # nodes and tensors refer to each other in circles, and some hold weights in float32
        memory.release()
    return found


def factors_of(one: Layers, pairs: Pairs) -> ChannelFactors:
    """Factors between two models, given their matched layers."""
    other = {id(a.node): b for a, b in pairs}
    found = _equalized(one, other)
    smooth = _smoothed(one, other)
    return ChannelFactors(
        {**found.tensors, **smooth.tensors}, {**found.made, **smooth.made}, {**found.read, **smooth.read},
        _form(one),
    )  # fmt: skip


def _form(one: Layers) -> LeanModel:
    """The float form, in which tensor names that folding removed stand for the output of the node folded into."""
    again = [helper.make_node("Identity", [now], [name]) for name, now in one.folded.items()]
    return LeanModel.of(one.model).edited(lambda proto: proto.graph.node.extend(again))


# ---------------------------------------------------------------------- equalized channels, axis 1


def _equalized(one: Layers, other: Mapping[int, Layer]) -> ChannelFactors:
    channels = channels_of(one.model)
    reads = {id(node): ids for node, ids in channels.read_by}
    factors = np.ones(channels.count)
    for _ in range(2):  # the first pass knows only the first of several layers that make a channel
        factors = _fitted(channels, reads, other, factors)
    wrong = {int(i) for node, ids in channels.read_by for i in _contradicted(node, ids, other, factors, channels)}
    wrong |= channels.fixed
    factors[list(wrong)] = 1.0
    factors[np.abs(factors - 1) < _SAME] = 1.0
    scaled = {name: (1, factors[ids]) for name, ids in channels.of.items() if (factors[ids] != 1).any()}
    made = {node.label: factors[ids] for node, ids in channels.made_by if (factors[ids] != 1).any()}
    read = {node.label: factors[ids] for node, ids in channels.read_by if (factors[ids] != 1).any()}
    return ChannelFactors(scaled, made, read)


def _fitted(channels: Channels, reads: Mapping[int, Ids], other: Mapping[int, Layer], known: Floats) -> Floats:
    """Factor of each channel, by least squares over the weights that make it; 1 if they do not fit."""
    numerator, energy = np.zeros(len(known)), np.zeros(len(known))
    factors, bad = known.copy(), set[int]()
    for node, ids in channels.made_by:
        tables = _tables(node, other.get(id(node)))
        if tables is None:
            bad |= set(ids.tolist())
            continue
        ids_read = reads.get(id(node))
        inner = None if ids_read is None else factors[ids_read]
        for rows, before, after in _blocks(*tables):
            expected = (before / _spread(before, inner, rows, len(tables[0]))).reshape(len(before), -1)
            got = after.reshape(len(after), -1)
            product, own = (got * expected).sum(axis=1), (expected**2).sum(axis=1)
            fit = product / np.maximum(own, 1e-300)
            left = ((got - fit[:, None] * expected) ** 2).sum(axis=1)
            wrong = (left > _FIT * (got**2).sum(axis=1)) | (fit <= 0)
            bad |= set(ids[rows][wrong].tolist())
            np.add.at(numerator, ids[rows], product)
            np.add.at(energy, ids[rows], own)
        some = ids[(energy[ids] > 0) & (numerator[ids] > 0)]
        factors[some] = numerator[some] / energy[some]
        factors[list(bad)] = 1.0
    return factors


def _blocks(before: NDArray[Any], after: NDArray[Any]) -> Iterator[tuple[slice, Floats, Floats]]:
    """Rows of two weights, outputs first, as float64, and which they are; as many at once as the budget allows."""
    rows = max(memory.held_bytes() // _SHARE // max(8 * (before.size // max(len(before), 1)), 1), 1)
    for start in range(0, len(before), rows):
        some = slice(start, min(start + rows, len(before)))
        yield some, before[some].astype(np.float64), after[some].astype(np.float64)


def spread_inputs(table: NDArray[Any], factors: Floats | None) -> Any:
    """Factors of a weight's inputs [I], shaped to broadcast over the weight [O, I / groups, *kernel]."""
    return _spread(table, factors, slice(0, len(table)), len(table))


def _spread(table: NDArray[Any], factors: Floats | None, rows: slice, count: int) -> Any:
    """As `spread_inputs`, for some rows of a weight that has `count` of them."""
    if factors is None:
        return 1.0
    groups = len(factors) // table.shape[1]
    by_group = factors.reshape(groups, -1)
    if groups > 1:
        by_group = by_group[np.arange(rows.start, rows.stop) // (count // groups)]
    return by_group.reshape(*by_group.shape, *[1] * (table.ndim - 2))


def _contradicted(
    node: Node, ids: Ids, other: Mapping[int, Layer], factors: Floats, channels: Channels
) -> Iterator[int]:
    """Channels whose factor is not undone by a weight that reads them."""
    tables = _tables(node, other.get(id(node)))
    if tables is None:
        yield from ids.tolist()
        return
    count, inner = tables[0].shape[:2]
    groups = len(ids) // inner
    outs = next((o for n, o in channels.made_by if n is node), None)
    scale = np.ones(count) if outs is None else factors[outs]
    product, energy = np.zeros((groups, inner)), np.zeros((groups, inner))
    for rows, before, after in _blocks(*tables):
        got = (after.reshape(len(after), -1) / scale[rows, None]).reshape(len(after), inner, -1)
        expected = before.reshape(got.shape)
        for total, values in ((product, got * expected), (energy, expected**2)):
            if groups == 1:
                total += values.sum(axis=(0, 2))
            else:
                np.add.at(total, np.arange(rows.start, rows.stop) // (count // groups), values.sum(axis=2))
    fit = product / np.maximum(energy, 1e-300)
    off = np.abs(fit.reshape(-1) * factors[ids] - 1) > _AGREES
    yield from ids[off & (energy.reshape(-1) > 0)].tolist()


def _tables(node: Node, match: Layer | None) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The weight of a Conv or Gemm in both files, outputs first; None if the shapes differ."""
    if match is None or match.slot is None or match.node.op not in ("Conv", *_PRODUCTS):
        return None
    return _if_same_shape(_weight(node, 1), _weight(match.node, match.slot))


def _if_same_shape(
    before: NDArray[Any] | None, after: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    return (before, after) if before is not None and after is not None and before.shape == after.shape else None


def _weight(node: Node, slot: int) -> NDArray[Any] | None:
    values = edit.constant_input(node, slot)
    if values is None or values.ndim < 2 or values.dtype.kind != "f":
        return None
    return outputs_first(node, slot, np.asarray(values))


# ---------------------------------------------------------------------- smoothed products, last axis


def _smoothed(one: Layers, other: Mapping[int, Layer]) -> ChannelFactors:
    """Factors of outputs of normalizations, or of products with a vector, that all reading matrix products undo."""
    tensors: dict[str, tuple[int, Floats]] = {}
    read: dict[str, Floats] = {}
    for _, node in one.model.walk():
        match = other.get(id(node))
        if match is not None and node.op in ("LayerNormalization", "Mul", "Add"):
            ratio = _ratio(node, match.node, tensors)
            if ratio is not None and (np.abs(ratio - 1) > _SAME).any() and _undone_by_readers(node, ratio, other):
                tensors[node.outputs[0].name] = (-1, ratio)
        if match is not None and node.op in _PRODUCTS and not node.attrs.get("transA", 0):
            known = tensors.get(node.inputs[0].name)
            inner = known[1] if known is not None else _own_scaling(node, match.node)
            if inner is not None:
                read[node.label] = inner
    return ChannelFactors(tensors, {}, read)


def _ratio(node: Node, match: Node, tensors: Mapping[str, tuple[int, Floats]]) -> Floats | None:
    """Factors of the output's channels between the files, from the vectors that scale them; None if there are none."""
    if node.op != match.op:
        return None
    if node.op == "LayerNormalization":
        return _quotient(edit.constant_input(node, 1), edit.constant_input(match, 1))
    before, after = _vector(node), _vector(match)
    if before is None or after is None:
        return None
    source = next((tensors[t.name][1] for t in node.inputs if t.name in tensors), None)
    if node.op == "Add":
        return source if source is not None and len(source) == before.size else None
    found = _quotient(before, after)
    return found if found is None or source is None else found * source


def _vector(node: Node) -> NDArray[Any] | None:
    values = [v for v in (edit.constant_input(node, i) for i in range(len(node.inputs))) if v is not None]
    if len(values) != 1 or not values[0].ndim or values[0].size != values[0].shape[-1]:
        return None
    return values[0].reshape(-1)


def _quotient(before: NDArray[Any] | None, after: NDArray[Any] | None) -> Floats | None:
    if before is None or after is None or before.shape != after.shape or before.dtype.kind != "f":
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = after.astype(np.float64).reshape(-1) / before.astype(np.float64).reshape(-1)
    found = np.where(np.isfinite(found), found, 1.0)
    return found if (found > 0).all() else None


def _undone_by_readers(node: Node, ratio: Floats, other: Mapping[int, Layer]) -> bool:
    """Whether at least one product reads the tensor, and every reader has rows that undo the factors."""
    readers = list(edit.consumers(node.outputs[0]))
    products = [r for r in readers if r.op in _PRODUCTS and r.inputs[0] is node.outputs[0]]
    passed = [r for r in readers if r.op in ("Add", "Mul") and _vector(r) is not None]
    if len(products) + len(passed) != len(readers) or not readers:
        return False
    return all(_rows_undo(r, other.get(id(r)), ratio) for r in products) and all(
        _undone_by_readers(r, _factors_after(r, other.get(id(r)), ratio), other) for r in passed
    )


def _factors_after(node: Node, match: Layer | None, ratio: Floats) -> Floats:
    """The factors after a node that adds or multiplies a vector."""
    if node.op == "Add" or match is None:
        return ratio
    found = _quotient(_vector(node), _vector(match.node))
    return ratio if found is None or found.shape != ratio.shape else ratio * found


def _rows_undo(node: Node, match: Layer | None, ratio: Floats) -> bool:
    after = None if match is None or match.slot is None else _weight(match.node, match.slot)
    tables = _if_same_shape(_weight(node, 1), after)
    if tables is None or tables[0].shape[1] != len(ratio):
        return False
    energy, product = np.zeros(tables[0].shape[1:]), np.zeros(tables[0].shape[1:])
    for _, before, after in _blocks(*tables):
        energy += (before**2).sum(axis=0)
        product += (before * after).sum(axis=0)
    fit = product / np.maximum(energy, 1e-300)
    return bool((np.abs(fit * ratio - 1)[energy > 0] < _AGREES).mean() > 0.9) if (energy > 0).any() else False


def _own_scaling(node: Node, match: Node) -> Floats | None:
    """The vector of a Mul that only the second file has before a product."""
    maker = edit.producer(match.inputs[0])
    if maker is None or maker.op != "Mul" or node.inputs[0].name not in [t.name for t in maker.inputs]:
        return None
    vector = _vector(maker)
    return None if vector is None or not (vector > 0).all() else vector.astype(np.float64)
