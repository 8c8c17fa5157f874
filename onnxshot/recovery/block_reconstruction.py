"""Round weights in blocks with data, product after product: GPTQ whose targets come from the float network.

The float model is the teacher. The student is the same graph with the weights that the integers stand for. Products
are rounded in order, those that read one tensor together. Each reads its inputs from the student, which include the
error of all earlier products, and learns to give the teacher's outputs. Rows that nothing was learned from decide, for
each product, between several ways to round it, one of them without data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxshot import memory
from onnxshot.execution.layer_graph import LayerGraph
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.layer_walk import Walk
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.affine import quantize
from onnxshot.maths.block_rounding import Spread, retargeted, round_blocks, spread_of
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import NotFinite, QuantParams, QuantScheme
from onnxshot.maths.rounded_blocks import RoundedBlocks
from onnxshot.planning.plan import Plan
from onnxshot.recovery.block_products import Product, by_input, products_of, stored_floats, tables_of
from onnxshot.recovery.block_rows import Division, Inputs, Learned
from onnxshot.settings import Settings

Floats = NDArray[np.float32]

_ROWS = 8192  # rows that a product learns from, over all samples
_MOMENT_BYTES = 56  # that rounding takes for each of K * K second moments, and
_MOMENTS_SHARE = 2  # the share of the budget that it may take; inputs of products with more are rounded in blocks
_TRIED_OUTPUTS = 192  # outputs of a product that ways to round it are compared on
_SLAB = 32 << 20  # bytes of a weight in float32 that are rounded at a time
_TARGETS = (0.0, 0.5, 1.0)  # how far weights move towards those that undo the error of earlier products


@dataclass(frozen=True, eq=False)
class BlockRounding:
    """Weights rounded with data.

    Attributes:
        weights: name of a weight -> its integers. Tied weights and tables are in it under each name.
        biases: name of a Gemm, or of the Add behind a MatMul -> its new bias, float32.
        layers: what was done to each product, in graph order.
    """

    weights: Mapping[str, RoundedBlocks]
    biases: Mapping[str, Floats]
    layers: Sequence[LayerRounding]

    def said(self) -> str:
        """What was done, in words; empty where nothing was."""
        if not self.layers:
            return ""
        learned = [layer for layer in self.layers if layer.target is not None]
        before = float(np.mean([layer.plain_db for layer in self.layers]))
        after = float(np.mean([layer.db for layer in self.layers]))
        said = (
            f"weights of {len(learned)} of {len(self.layers)} products were rounded with data, to {after:.1f} dB on "
            f"average of their outputs, {before:.1f} dB without, on rows that were not learned from"
        )
        wide = [layer for layer in self.layers if layer.parts > 1]
        if wide:
            said += f"; inputs of {len(wide)} were rounded in parts: all second moments exceed the memory budget"
        return said + (f"; {len(self.biases)} biases were corrected" if self.biases else "")


@dataclass(frozen=True, slots=True)
class LayerRounding:
    """What was done to one product.

    Attributes:
        node: its name.
        target: how far its weights moved to undo the error of earlier products, 0 to 1; None if rounded without data.
        db: SQNR of its outputs in dB on rows that were not learned from, given the inputs of the quantized network.
        plain_db: the same if its weight were rounded without data.
        parts: in how many parts its inputs were rounded, each for itself.
    """

    node: str
    target: float | None
    db: float
    plain_db: float
    parts: int


def rounded_weights(
    model: LeanModel, plan: Plan, feeds: Feeds, settings: Settings, scale_type: DTypeLike = np.float32
) -> BlockRounding:
    """Round the weights of a model that its plan puts in blocks.

    Memory: what two walks hold (see `Walk`), the results up to `memory.held_bytes()`, and for one product at a time
    the second moments of its inputs and 32 MB of weights.

    Args:
        model: the prepared float model.
        plan: what is quantized, and how.
        feeds: samples, in an order whose beginning is spread over all of them. As many are used as have _ROWS rows.
        settings: threads, and the progress callback.
        scale_type: the type that scales are stored in.

    Raises:
        ModelError: the model does not run.
    """
    graph = LayerGraph.of(model)
    products = products_of(graph, plan)
    if not products or not feeds:
        return BlockRounding({}, {}, ())
    groups = by_input(products)
    feeds = _enough(model, groups[0][0].input, feeds, settings.threads)
    with KeptArrays() as kept:
        work = _Work(model, feeds, settings, scale_type, kept)
        work.fit_tables(tables_of(model, plan))
        for group in groups:
            work.round_group(group)
            if settings.progress is not None:
                settings.progress("rounding weights", len(work.layers), len(products))
        return BlockRounding(work.found, work.biases, tuple(work.layers))


def _enough(model: LeanModel, first: str, feeds: Feeds, threads: int) -> Feeds:
    """As many of the samples as have enough rows of this tensor."""
    some, rows = 8, 0
    for start in range(0, len(feeds), some):
        batch = feeds[start : start + some]
        walk = Walk(model, batch, threads)
        if first in model.proto.graph.input:
            sizes = [math.prod(feed[first].shape[:-1]) for feed in batch]
        else:
            sizes = [math.prod(values.shape[:-1]) for values in walk.values(first)]
        for number, size in enumerate(sizes, start + 1):
            rows += size
            if rows * 5 >= _ROWS * 6:  # a sixth decides, and is not learned from
                return feeds[:number]
    return feeds


@dataclass(slots=True)
class _Work:
    """The two walks, and what was found so far."""

    model: LeanModel
    feeds: Feeds
    settings: Settings
    scale_type: DTypeLike
    kept: KeptArrays
    found: dict[str, RoundedBlocks] = field(init=False, default_factory=dict)
    biases: dict[str, Floats] = field(init=False, default_factory=dict)
    layers: list[LayerRounding] = field(init=False, default_factory=list)
    _teacher: Walk = field(init=False)
    _student: Walk = field(init=False)
    _division: Division = field(init=False)

    def __post_init__(self) -> None:
        self._teacher = Walk(self.model, self.feeds, self.settings.threads)
        self._student = Walk(self.model, self.feeds, self.settings.threads)
        self._division = Division.of(self.feeds, _ROWS)

    def fit_tables(self, tables: Mapping[str, QuantScheme]) -> None:
        """Round the tables that a Gather reads to nearest."""
        for name, scheme in tables.items():
            table = self.model.array(name)
            found = _joined(self._plain(table, scheme), scheme)
            self._put(name, found, table.shape, transposed=False)

    def round_group(self, group: Sequence[Product]) -> None:
        """Round products that read the same tensor."""
        given = group[0].input
        wanted, got = self._teacher.values(given), self._student.values(given)
        inputs = [Inputs(group[0], e, wanted, got, self._division) for e in range(group[0].experts)]
        trials = [_Trial(one, self.scale_type) for one in inputs]
        for product in group:
            self._round(product, trials)

    def _round(self, product: Product, trials: Sequence[_Trial]) -> None:
        weight = self.model.array(product.weight)
        tables = [product.table(weight, expert) for expert in range(product.experts)]
        choices = [trial.choose(product, table) for trial, table in zip(trials, tables, strict=True)]
        pieces = [
            piece
            for trial, table, choice in zip(trials, tables, choices, strict=True)
            for piece in (
                self._plain(table, product.scheme) if choice.target is None
                else trial.rounded(product, table, choice.target)
            )
        ]  # fmt: skip
        found = _joined(iter(pieces), product.scheme)
        self._put(product.weight, found, product.shape, transposed=product.form.transposed)
        if product.bias:
            self._correct(product, trials[0].means, tables[0], found)
        best = choices[0] if len(choices) == 1 else _mean_choice(choices)
        self.layers.append(LayerRounding(product.node, best.target, best.db, best.plain_db, trials[0].parts))

    def _correct(
        self, product: Product, means: tuple[NDArray[np.float64], NDArray[np.float64]], table: NDArray[Any],
        found: RoundedBlocks,
    ) -> None:  # fmt: skip
        """Add what the mean output lacks to the bias."""
        wanted, got = means
        missing = np.concatenate([
            table[rows].astype(np.float64) @ wanted - floats @ got
            for rows, floats in _slabs_of(found)
        ])  # fmt: skip
        old = self._student.constant(product.bias)
        bias = (old + missing.reshape(old.shape)).astype(np.float32)
        if np.isfinite(bias).all():
            self._student.set(product.bias, bias)
            self.biases[product.adds or product.node] = bias

    def _plain(
        self, table: NDArray[Any], scheme: QuantScheme
    ) -> Iterator[tuple[NDArray[Any], QuantParams]]:
        for rows in _slabs(table.shape):
            part = np.ascontiguousarray(table[rows], np.float32)
            params = fit_blocks(part, scheme, None, self.scale_type)
            yield quantize(part, params), params

    def _put(self, name: str, found: RoundedBlocks, shape: Sequence[int], *, transposed: bool) -> None:
        found = found.kept(self.kept.add)
        self.found[name] = found
        self._student.set(name, stored_floats(name, found, shape, transposed=transposed))


@dataclass(frozen=True, slots=True)
class _Choice:
    """How a product is rounded: as in `LayerRounding`."""

    target: float | None
    db: float
    plain_db: float


def _mean_choice(choices: Sequence[_Choice]) -> _Choice:
    learned = [c.target for c in choices if c.target is not None]
    target = float(np.mean(learned)) if learned else None
    return _Choice(target, *(float(np.mean([getattr(c, n) for c in choices])) for n in ("db", "plain_db")))


class _Trial:
    """The ways to round products that read the same inputs."""

    def __init__(self, inputs: Inputs, scale_type: DTypeLike) -> None:
        self._inputs, self._scale_type = inputs, scale_type
        columns, size = inputs.product.inputs, inputs.product.size
        afford = math.isqrt(memory.budget() // (_MOMENTS_SHARE * _MOMENT_BYTES))
        whole = -(-columns // size)  # blocks
        self.parts = min(-(-columns // max(afford, 1)), whole)
        starts = [int(blocks[0]) * size for blocks in np.array_split(np.arange(whole), self.parts)]
        self._slices = [slice(a, b) for a, b in zip(starts, [*starts[1:], columns], strict=True)]
        self._learned: dict[bool, Learned] = {}
        self._spreads: dict[tuple[bool, int], Spread] = {}
        self._checks = inputs.checks()
        if self.parts == 1:
            self._learned[False] = inputs.learned(slice(0, columns), cross=True)

    @property
    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means of the inputs in the float network and in the quantized one."""
        known = self._learned[False] if self.parts == 1 else self._inputs.learned(slice(0, 0), cross=False)
        return known.wanted, known.got

    def choose(self, product: Product, table: NDArray[Any]) -> _Choice:
        """The best of the ways to round a product, on rows that were not learned from."""
        at = np.linspace(0, len(table) - 1, min(_TRIED_OUTPUTS, len(table))).astype(np.int64)
        some = np.ascontiguousarray(table[at], np.float32)
        params = fit_blocks(some, product.scheme, None, self._scale_type)
        plain = self._db(product, some, RoundedBlocks.of(quantize(some, params), params).floats())
        targets = _TARGETS if self.parts == 1 else _TARGETS[:1]
        try:
            tried = {
                target: self._db(product, some, _joined(self.rounded(product, some, target), product.scheme).floats())
                for target in targets
            }
        except (NotFinite, np.linalg.LinAlgError):
            return _Choice(None, plain, plain)
        best = max(tried, key=lambda target: tried[target])
        return _Choice(best, tried[best], plain) if tried[best] > plain else _Choice(None, plain, plain)

    def rounded(
        self, product: Product, table: NDArray[Any], target: float
    ) -> Iterator[tuple[NDArray[Any], QuantParams]]:
        """Yield integers and scales of the rows of a weight [N, K], some rows at a time."""
        centred, scheme = bool(product.bias), product.scheme
        for rows in _slabs(table.shape):
            part = np.ascontiguousarray(table[rows], np.float32)
            found = []
            for number, columns in enumerate(self._slices):
                some = part[:, columns]
                if target:
                    some = some + np.float32(target) * (self._retargeted(some, centred=centred) - some)
                found.append(round_blocks(some, self._spread(number, product.size, centred=centred), scheme, None,
                                          self._scale_type))  # fmt: skip
            yield _beside(found, scheme)

    def _retargeted(self, weight: Floats, *, centred: bool) -> NDArray[np.floating]:
        known = self._known(centred=centred)
        assert known.cross is not None
        return retargeted(weight, known.cross, known.moments)

    def _known(self, *, centred: bool) -> Learned:
        if centred not in self._learned:
            self._learned[centred] = self._learned[False].centred()
        return self._learned[centred]

    def _spread(self, number: int, size: int, *, centred: bool) -> Spread:
        if self.parts > 1:
            known = self._inputs.learned(self._slices[number], cross=False)
            return spread_of((known.centred() if centred else known).moments, size)
        if (centred, size) not in self._spreads:
            self._spreads[centred, size] = spread_of(self._known(centred=centred).moments, size)
        return self._spreads[centred, size]

    def _db(self, product: Product, table: Floats, floats: Floats) -> float:
        """SQNR of the outputs in dB, given the weight [N, K] in the quantized network."""
        x, y = self._checks
        if not len(x):
            return -math.inf
        wanted, got = x @ table.T, y @ floats.T
        left = wanted - got
        if product.bias:
            means = self.means
            left -= (table @ means[0] - floats @ means[1]).astype(np.float32)
        error = float(np.square(left, dtype=np.float64).sum())
        return 10 * math.log10(max(float(np.square(wanted, dtype=np.float64).sum()), 1e-30) / max(error, 1e-30))


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the rows of a matrix with some bytes each."""
    step = max(1, _SLAB // (4 * max(shape[1], 1)))
    yield from (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _slabs_of(found: RoundedBlocks) -> Iterator[tuple[slice, Floats]]:
    for rows in _slabs((len(found.packed), found.inputs)):
        yield rows, found.rows(rows).floats()


def _joined(pieces: Iterator[tuple[NDArray[Any], QuantParams]], scheme: QuantScheme) -> RoundedBlocks:
    """Rows of a weight that were rounded one after another."""
    made = [RoundedBlocks.of(codes, params) for codes, params in pieces]
    scale, zero = (np.concatenate([getattr(m.params, n) for m in made]) for n in ("scale", "zero_point"))
    packed = np.concatenate([m.packed for m in made])
    return RoundedBlocks(packed, QuantParams(scheme, scale, zero), made[0].inputs)


def _beside(
    found: Sequence[tuple[NDArray[Any], QuantParams]], scheme: QuantScheme
) -> tuple[NDArray[Any], QuantParams]:
    """Columns of a weight that were rounded each for themselves."""
    if len(found) == 1:
        return found[0]
    codes = np.concatenate([codes for codes, _ in found], axis=1)
    scale, zero = (np.concatenate([getattr(p, n) for _, p in found], axis=1) for n in ("scale", "zero_point"))
    return codes, QuantParams(scheme, scale, zero)
