"""Importance 'error': the output error after channels are removed and the layers that read them have compensated.

The order of removal follows the error of the reading layers, by Optimal Brain Surgeon on the second moments of their
inputs. The height of each curve is measured: the model runs with parts of the group removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.channels.groups import Group, in_steps, step_size
from onnxshot.channels.layer_inputs import Layer, layers_of, whole_columns
from onnxshot.channels.output_error import OutputErrors
from onnxshot.channels.removal_curve import MOST, RemovalCurve, keep_one_per_tensor
from onnxshot.channels.shown_tensors import shown
from onnxshot.execution.layer_rows import Feeds
from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.channel_removal import Floats, Reader, compensated_weights, removal_order
from onnxshot.progress import Progress
from onnxshot.runtimes.spool import Spool

_ROWS = 8192  # output positions that second moments are collected at
_AT_ONCE = 1024  # rows that are gathered before they are added to the moments
_UPDATES = 64  # times that the remaining channels are ranked anew while a group is removed
_LEVELS = (0.125, 0.3, 0.6)  # removed shares of a group at which the output error is measured
_FEW_ROWS = 0.1  # damping for few rows: times (columns / rows) times the mean second moment
_LEAST_LOSS = 1e-9  # share of the output energy below which a loss is rounding noise
_GROUP_SHARE = 2  # of the budget, for the weights and second moments of all readers of a group
_NAMED = 3  # layers that a note names


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [G, K] and second moments [G, K, K] of a layer's inputs; central moments if the layer has a bias.

    Of the layers without compensation, only the diagonal [G, K] of the second moments is known.
    """

    mean: Floats
    second: Floats


@dataclass(frozen=True, slots=True)
class ErrorImportance:
    """Ranks groups by the output error that removing them causes.

    Attributes:
        model: The model.
        feeds: Samples that second moments are collected on.
        checks: Other samples, on which the output error is measured.
        threads: Samples that run at a time.
        multiple: Channels are removed in multiples of this many, see `step_size`.
        progress: Called as (stage, done, total).
        note: Called with what the user should know.

    Memory: second moments of the readers in a part of the model, and weights and second moments of the readers of one
    group, which are a share of the budget; what waits beyond another share is in a temporary file.
    """

    model: LeanModel
    feeds: Feeds
    checks: Feeds
    threads: int
    multiple: int = 1
    progress: Progress | None = None
    note: Callable[[str], None] | None = None

    def curves(self, groups: Sequence[Group]) -> list[RemovalCurve]:
        """Return a curve of each group."""
        readers = {node.label for group in groups for node, _ in group.readers}
        known = {name: layer for name, layer in layers_of(self.model).items() if name in readers}
        alone = _uncompensated(groups, known)
        if alone and self.note is not None:
            self.note(
                f"{_some(alone)}: their input channels are ranked without compensation by the others, as their second "
                "moments would take more than a share of the memory budget"
            )
        with Spool() as spool:
            moments = self._moments(list(known.values()), alone, spool)
            found = []
            for done, group in enumerate(groups):
                self._tell("weigh channels", done, len(groups))
                found.append(self._local(group, known, moments))
            return self._measured(found, known, moments)

    def _local(self, group: Group, known: Mapping[str, Layer], moments: Mapping[str, Moments]) -> RemovalCurve:
        """The curve of the local error of a group."""
        most = int(len(group.ids) * MOST)
        given = (reader for _, reader in self._readers(group, known, moments))
        at, local = removal_order(given, len(group.ids), most, max(1, len(group.ids) // _UPDATES))
        order = in_steps(group, keep_one_per_tensor(group, group.ids[at]), step_size(group, self.multiple))
        # After reordering, each channel keeps the error that it added in the original order.
        added = dict(zip(group.ids[at].tolist(), np.diff(local).tolist(), strict=True))
        local = np.concatenate([[0.0], np.cumsum([added[i] for i in order.tolist()])])
        return RemovalCurve(group, order, local, local)

    def _readers(
        self, group: Group, known: Mapping[str, Layer], moments: Mapping[str, Moments]
    ) -> Iterator[tuple[Node, Reader]]:
        """The layers that read a group, made one by one."""
        places = {number: at for at, number in enumerate(group.ids.tolist())}
        for node, ids in group.readers:
            owner = np.asarray([places.get(i, -1) for i in ids.tolist()], np.int64)
            layer = known.get(node.label)
            if layer is None:
                yield node, _unknown(node, owner)
                continue
            table, second = layer.table(self.model.array(layer.weight)), moments[layer.name].second
            if second.ndim > 2:
                table = table.astype(np.float64)
            yield node, Reader(table, second, owner.repeat(table.shape[2] // len(owner)))

    def _moments(self, layers: Sequence[Layer], alone: Collection[str], spool: Spool) -> Mapping[str, Moments]:
        """Second moments of the inputs of these layers, by layer name; of those in `alone` the diagonal."""
        share = -(-_ROWS // len(self.feeds))
        by_name = {layer.name: layer for layer in layers}
        sums: dict[str, list[NDArray[Any]]] = {}
        rows: dict[str, list[NDArray[np.float32]]] = {}

        def read(number: int, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            there = (layer for layer in layers if layer.input in values)
            return {layer.name: layer.inputs(values[layer.input], share, number) for layer in there}

        names = (layer.input for layer in layers)
        for number, taken in shown(self.model, names, self.feeds, self.threads, read):
            self._tell("gather moments", number, len(self.feeds))
            last = number == len(self.feeds) - 1
            for name, x in taken.items():
                waiting = rows.setdefault(name, [])
                waiting.append(x)
                if sum(map(len, waiting)) >= _AT_ONCE or last:
                    _add(sums.setdefault(name, []), np.concatenate(waiting), diagonal=name in alone)
                    del rows[name]
                if last:
                    found = _moments_of(by_name[name], sums.pop(name))
                    spool.put((name, "mean"), found.mean)
                    spool.put((name, "second"), found.second)
        return _Kept(spool, by_name)

    def _measured(
        self, curves: list[RemovalCurve], known: Mapping[str, Layer], moments: Mapping[str, Moments]
    ) -> list[RemovalCurve]:
        """The curves with the output error measured at `_LEVELS`, and interpolated by the local error in between."""
        errors = OutputErrors(self.model, self.checks, self.threads)
        found = []
        for done, curve in enumerate(curves):
            self._tell("try cuts", done, len(curves))
            points = []
            for level in sorted({max(1, round(len(curve.group.ids) * share)) for share in _LEVELS}):
                if level < len(curve.local):
                    gone = np.isin(curve.group.ids, curve.order[:level])
                    lost = errors.of(self._without(curve.group, gone, known, moments))
                    points.append((curve.local[level], lost))
            found.append(replace(curve, loss=scaled(curve.local, points)))
        return found

    def _without(
        self,
        group: Group,
        gone: NDArray[np.bool_],
        known: Mapping[str, Layer],
        moments: Mapping[str, Moments],
    ) -> LeanModel:
        """The model whose readers do not read these channels, and compensate them by their other weights."""
        changed: dict[str, NDArray[Any]] = {}
        computed: dict[str, Constant] = {}
        for node, reader in self._readers(group, known, moments):
            layer = known.get(node.label)
            name = node.inputs[1].name if layer is None else layer.weight
            if reader.diagonal and name in self.model.weights:
                lost = (reader.owner >= 0) & gone[np.maximum(reader.owner, 0)]
                old = self.model.weights[name]
                values = weights.ComputedValues(
                    tuple(old.shape), np.dtype(np.float32), partial(_zeroed, self.model, name, node, layer, lost)
                )
                computed[name] = Constant(name, values)
                table = None
            else:
                table = compensated_weights(reader, gone)
                changed[name] = _untable(table, node, self.model.array(name)) if layer is None else layer.stored(table)
            if layer is not None and layer.bias:
                before = self.model.array(layer.bias)
                shift = _lost_mean(reader, table, gone, moments[layer.name].mean).reshape(before.shape)
                changed[layer.bias] = (before + shift).astype(np.float32)
        other = self.model.replaced(changed)
        return replace(other, weights={**other.weights, **computed})

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done + 1, total)


class _Kept(Mapping[str, Moments]):
    """Moments by layer, read from where they wait."""

    def __init__(self, spool: Spool, names: Collection[str]) -> None:
        self._spool, self._names = spool, names

    def __getitem__(self, name: str) -> Moments:
        return Moments(self._spool.get((name, "mean")), self._spool.get((name, "second")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _uncompensated(groups: Sequence[Group], known: Mapping[str, Layer]) -> list[str]:
    """Layers whose second moments are too large: those of many inputs, and all readers of a large group."""
    most = memory.budget() // _GROUP_SHARE
    found = {name for name, layer in known.items() if layer.columns > whole_columns()}
    for group in groups:
        readers = [known[node.label] for node, _ in group.readers if node.label in known]
        if sum(_bytes(layer) for layer in readers if layer.name not in found) > most:
            found.update(layer.name for layer in readers)
    return [name for name in known if name in found]


def _bytes(layer: Layer) -> int:
    """What ranking takes of a reader: its weight twice, its second moments, and twice their inverse; in float64."""
    outputs = layer.outputs_of_group
    return 8 * layer.groups * layer.columns * (2 * outputs + 3 * layer.columns)


def _some(names: Sequence[str]) -> str:
    some = ", ".join(map(repr, names[:_NAMED]))
    return f"{some} and {len(names) - _NAMED} more" if len(names) > _NAMED else some


def scaled(local: Floats, points: Sequence[tuple[float, float]]) -> Floats:
    """Convert local errors [n] to output errors, through measured (local, output) points.

    Between the points the logarithms are interpolated. Beyond them the output error is proportional to the local one.
    """
    known = sorted((max(a, _LEAST_LOSS), max(b, _LEAST_LOSS)) for a, b in points)
    if not known:
        return local
    x, y = (np.log(np.asarray(column)) for column in zip(*known, strict=True))
    at = np.log(np.maximum(local, _LEAST_LOSS))
    ratio = np.interp(at, x, y - x)
    found = np.where(local > 0, np.exp(at + ratio), 0.0)
    return np.maximum.accumulate(found)


def _add(sums: list[NDArray[Any]], x: NDArray[np.float32], *, diagonal: bool) -> None:
    """Add rows [N, G, K] to (count, sum [G, K], sum of outer products [G, K, K] or of squares [G, K])."""
    if diagonal:
        second = np.square(x, dtype=np.float64).sum(axis=0)
    else:
        flat = x.transpose(1, 2, 0)
        second = (flat @ flat.transpose(0, 2, 1)).astype(np.float64)
    new = [np.asarray(len(x)), x.sum(axis=0, dtype=np.float64), second]
    if not sums:
        sums[:] = new
        return
    for i, (a, b) in enumerate(zip(sums, new, strict=True)):
        sums[i] = a + b


def _moments_of(layer: Layer, sums: Sequence[NDArray[Any]]) -> Moments:
    """The moments of a layer's inputs, damped for the number of rows."""
    count, total, second = sums
    mean = total / count
    if second.ndim == 2:
        second = second / count - (np.square(mean) if layer.bias else 0.0)
        return Moments(mean, np.maximum(second, 0.0))
    centre = mean[:, :, None] * mean[:, None, :] if layer.bias else 0.0
    second = second / count - centre
    columns = np.arange(layer.columns)
    # With fewer rows than columns, every channel looks like a linear combination of others, on these rows only.
    damping = _FEW_ROWS * layer.columns / float(count) * second[:, columns, columns].mean(axis=1)
    second[:, columns, columns] += damping[:, None]
    return Moments(mean, second)


def _unknown(node: Node, owner: NDArray[np.int64]) -> Reader:
    """A reader whose inputs are not seen: their second moments count as the identity."""
    weight = node.inputs[1]
    assert isinstance(weight, Constant)
    table = _table(node, weights.read(weight))
    if len(owner) > whole_columns():
        return Reader(table, np.ones((1, len(owner))), owner)
    flat = np.broadcast_to(np.eye(len(owner)), (1, len(owner), len(owner)))
    return Reader(table.astype(np.float64), np.ascontiguousarray(flat), owner)


def _lost_mean(
    reader: Reader, table: NDArray[np.floating] | None, gone: NDArray[np.bool_], mean: Floats
) -> Floats:
    """What the mean output [G, O] loses by a new weight; None for one whose removed inputs are not compensated."""
    if table is None:
        lost = (reader.owner >= 0) & gone[np.maximum(reader.owner, 0)]
        return np.asarray(np.einsum("gok,gk->go", reader.weight[:, :, lost], mean[:, lost]))
    return np.asarray(np.einsum("gok,gk->go", reader.weight - table, mean))


def _zeroed(
    model: LeanModel, name: str, node: Node, layer: Layer | None, lost: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A weight with zeros in these columns of its table."""
    given = model.array(name)
    table = (_table(node, given) if layer is None else layer.table(given)).copy()
    table[:, :, lost] = 0.0
    return np.asarray(_untable(table, node, given) if layer is None else layer.stored(table))


def in_axis(node: Node, rank: int) -> int:
    """Axis of a layer's weight that holds its input channels."""
    return {"Conv": 1, "ConvTranspose": 0, "MatMul": rank - 2}.get(node.op, 1 if node.attrs.get("transB", 0) else 0)


def _table(node: Node, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight as [1, all other axes, inputs]."""
    moved = np.moveaxis(weight, in_axis(node, weight.ndim), -1)
    return moved.reshape(1, -1, moved.shape[-1])


def _untable(table: NDArray[Any], node: Node, like: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_table`, in the shape and dtype of `like`."""
    axis = in_axis(node, like.ndim)
    shape = [size for i, size in enumerate(like.shape) if i != axis] + [like.shape[axis]]
    return np.moveaxis(table.reshape(shape), -1, axis).astype(like.dtype)
