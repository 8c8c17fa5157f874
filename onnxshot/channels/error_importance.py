"""Importance 'error': the output error after channels are removed and the layers that read them have compensated.

The order of removal follows the error of the reading layers, by Optimal Brain Surgeon on the second moments of their
inputs. The height of each curve is measured: the model runs with parts of the group removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnxshot.channels.groups import Group, in_steps, step_size
from onnxshot.channels.layer_inputs import Layer, layers_of
from onnxshot.channels.removal_curve import MOST, RemovalCurve, keep_one_per_tensor
from onnxshot.comparison.balanced_sqnr import balanced_db, joined, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.parallel import in_order
from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.axis_coupling import Ids
from onnxshot.graph.proto_copies import with_initializers_serialized, with_outputs
from onnxshot.maths.channel_removal import Floats, Reader, compensated_weights, removal_order
from onnxshot.progress import Progress
from onnxshot.runtimes.ort_runtime import Feed, Runner

_MOST_COLUMNS = 3072  # inputs per output; above, second moments take over 75 MB and the weight norm is used instead
_ROWS = 8192  # output positions that second moments are collected at
_UPDATES = 64  # times that the remaining channels are ranked anew while a group is removed
_LEVELS = (0.125, 0.3, 0.6)  # removed shares of a group at which the output error is measured
_FEW_ROWS = 0.1  # damping for few rows: times (columns / rows) times the mean second moment
_LEAST_LOSS = 1e-9  # share of the output energy below which a loss is rounding noise


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [G, K] and second moments [G, K, K] of a layer's inputs; central moments if the layer has a bias."""

    mean: Floats
    second: Floats


@dataclass(frozen=True, slots=True)
class ErrorImportance:
    """Ranks groups by the output error that removing them causes.

    Attributes:
        proto: The model.
        feeds: Samples that second moments are collected on.
        checks: Other samples, on which the output error is measured.
        threads: Samples that run at a time.
        multiple: Channels are removed in multiples of this many, see `step_size`.
        progress: Called as (stage, done, total).

    Memory: the second moments of the inputs of all readers, and one candidate model at a time.
    """

    proto: ModelProto
    feeds: Feeds
    checks: Feeds
    threads: int
    multiple: int = 1
    progress: Progress | None = None

    def curves(self, groups: Sequence[Group]) -> list[RemovalCurve]:
        """Return a curve of each group."""
        layers = layers_of(self.proto)
        readers = {node.label for group in groups for node, _ in group.readers}
        known = {n: layer for n, layer in layers.items() if n in readers and layer.columns <= _MOST_COLUMNS}
        moments = self.moments(list(known.values()))
        constants = {t.name: t for t in self.proto.graph.initializer}
        found, held = [], []
        for done, group in enumerate(groups):
            self._tell("weigh channels", done, len(groups))
            given = [
                _reader(group, node, ids, known.get(node.label), constants, moments) for node, ids in group.readers
            ]
            most = int(len(group.ids) * MOST)
            at, local = removal_order(given, len(group.ids), most, max(1, len(group.ids) // _UPDATES))
            order = in_steps(group, keep_one_per_tensor(group, group.ids[at]), step_size(group, self.multiple))
            # After reordering, each channel keeps the error that it added in the original order.
            added = dict(zip(group.ids[at].tolist(), np.diff(local).tolist(), strict=True))
            local = np.concatenate([[0.0], np.cumsum([added[i] for i in order.tolist()])])
            found.append(RemovalCurve(group, order, local, local))
            held.append(given)
        return self._measured(found, held, known, moments)

    def moments(self, layers: Sequence[Layer]) -> dict[str, Moments]:
        """Second moments of the inputs of these layers, by layer name."""
        given = {i.name for i in self.proto.graph.input}
        names = list(dict.fromkeys(layer.input for layer in layers))
        shown = with_outputs(with_fixed_randomness(self.proto), [n for n in names if n not in given])
        runner = Runner(shown, threads=1, inner=True)
        share = -(-_ROWS // len(self.feeds))
        sums: dict[str, list[NDArray[Any]]] = {}
        rows: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in layers}

        def read(numbered: tuple[int, Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
            number, feed = numbered
            values = {**feed, **runner.run(feed)}
            return [layer.inputs(values[layer.input], share, number) for layer in layers]

        for number, taken in enumerate(in_order(read, enumerate(self.feeds), self.threads)):
            self._tell("gather moments", number, len(self.feeds))
            for layer, x in zip(layers, taken, strict=True):
                rows[layer.name].append(x)
                if sum(map(len, rows[layer.name])) >= 1024 or number == len(self.feeds) - 1:
                    _add(sums.setdefault(layer.name, []), np.concatenate(rows[layer.name]))
                    rows[layer.name] = []
        found = {}
        for layer in layers:
            count, total, second = sums[layer.name]
            mean = total / count
            centre = mean[:, :, None] * mean[:, None, :] if layer.bias else 0.0
            second = second / count - centre
            columns = np.arange(layer.columns)
            # With fewer rows than columns, every channel looks like a linear combination of others, on these rows only.
            damping = _FEW_ROWS * layer.columns / float(count) * second[:, columns, columns].mean(axis=1)
            second[:, columns, columns] += damping[:, None]
            found[layer.name] = Moments(mean, second)
        return found

    def _measured(
        self,
        curves: list[RemovalCurve],
        readers: list[list[Reader]],
        known: Mapping[str, Layer],
        moments: Mapping[str, Moments],
    ) -> list[RemovalCurve]:
        """The curves with the output error measured at `_LEVELS`, and interpolated by the local error in between."""
        how = comparison_setup(self.proto.SerializeToString(), self.checks[0])
        wanted = list(in_order(Runner(how.reference, threads=1, whole=True).run, self.checks, self.threads))
        found = []
        for done, (curve, given) in enumerate(zip(curves, readers, strict=True)):
            self._tell("try cuts", done, len(curves))
            points = []
            for level in sorted({max(1, round(len(curve.group.ids) * share)) for share in _LEVELS}):
                if level < len(curve.local):
                    gone = np.isin(curve.group.ids, curve.order[:level])
                    changed = self._without(curve.group, gone, given, known, moments)
                    other = with_initializers_serialized(self.proto, changed)
                    lost = output_error(how, wanted, other, self.checks, self.threads)
                    points.append((curve.local[level], lost))
            found.append(replace(curve, loss=scaled(curve.local, points)))
        return found

    def _without(
        self,
        group: Group,
        gone: NDArray[np.bool_],
        readers: Sequence[Reader],
        known: Mapping[str, Layer],
        moments: Mapping[str, Moments],
    ) -> dict[str, NDArray[Any]]:
        """Constants of the readers with these input channels zeroed and the other weights compensating."""
        constants = {t.name: t for t in self.proto.graph.initializer}
        changed: dict[str, NDArray[Any]] = {}
        for (node, _), reader in zip(group.readers, readers, strict=True):
            layer = known.get(node.label)
            table = compensated_weights(reader, gone)
            if layer is None:
                name = node.inputs[1].name
                changed[name] = _untable(table, node, numpy_helper.to_array(constants[name]))
                continue
            changed[layer.weight] = layer.stored(table)
            if layer.bias:
                old = numpy_helper.to_array(constants[layer.bias])
                shift = np.einsum("gok,gk->go", reader.weight - table, moments[layer.name].mean).reshape(old.shape)
                changed[layer.bias] = (old + shift).astype(np.float32)
        return changed

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done + 1, total)


def output_error(how: ComparisonSetup, wanted: Sequence[Feed], model: bytes, feeds: Feeds, threads: int) -> float:
    """Energy of the error of a model's float outputs, as a share of the wanted energy; each output has equal weight."""
    runner = CandidateRunner(how, model, threads=1)
    given = (how.feed(feed, want) for feed, want in zip(feeds, wanted, strict=True))
    pairs = zip(wanted, in_order(runner.run, given, threads), strict=True)
    noise = joined(sums_of(want, got, how.compared(want, got)) for want, got in pairs)
    return float(10.0 ** (-balanced_db(noise) / 10)) if noise else 0.0


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


def _add(sums: list[NDArray[Any]], x: NDArray[np.float32]) -> None:
    """Add rows [N, G, K] to (count, sum [G, K], sum of outer products [G, K, K])."""
    flat = x.transpose(1, 2, 0)
    new = [np.asarray(len(x)), x.sum(axis=0, dtype=np.float64), (flat @ flat.transpose(0, 2, 1)).astype(np.float64)]
    sums[:] = new if not sums else [a + b for a, b in zip(sums, new, strict=True)]


def _reader(
    group: Group,
    node: Node,
    ids: Ids,
    layer: Layer | None,
    constants: Mapping[str, TensorProto],
    moments: Mapping[str, Moments],
) -> Reader:
    """A layer that reads the group, with the second moments of its inputs, or the identity if there are none."""
    places = {number: at for at, number in enumerate(group.ids.tolist())}
    owner = np.asarray([places.get(i, -1) for i in ids.tolist()], np.int64)
    if layer is not None:
        table = layer.table(numpy_helper.to_array(constants[layer.weight])).astype(np.float64)
        return Reader(table, moments[layer.name].second, owner.repeat(table.shape[2] // len(owner)))
    weight = node.inputs[1]
    assert isinstance(weight, Constant)
    table = _table(node, weights.read(weight).astype(np.float64))
    flat = np.broadcast_to(np.eye(len(owner)), (1, len(owner), len(owner)))
    return Reader(table, np.ascontiguousarray(flat), owner)


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
