"""Round weights in blocks with data, product after product: GPTQ over the quantized network.

The float model is the teacher. The student is the same graph with the weights that the integers stand for. Products
are rounded in order, those that read one tensor together. Each learns from its inputs in the student, which include the
error of all earlier products, and makes up for the mean of that error where it has a bias. Rows that nothing was
learned from decide between several ways to round a product, one of them without data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.execution.layer_graph import LayerGraph
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.layer_walk import Walk
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.block_codes import BlockCodes
from onnxshot.maths.quant_scheme import QuantScheme
from onnxshot.planning.plan import Plan
from onnxshot.recovery.block_products import Product, by_input, products_of, stored_floats, tables_of
from onnxshot.recovery.block_rows import Division, Inputs
from onnxshot.recovery.block_trial import Choice, Scales, Trial, slabs
from onnxshot.settings import Settings

Floats = NDArray[np.float32]

_ROWS = 12288  # rows that a product learns from, over all samples
_FEWEST = 8  # samples that are used even if fewer have that many rows
ScalesOf = Callable[[str], Scales]


@dataclass(frozen=True, eq=False)
class BlockRounding:
    """Weights rounded with data.

    Attributes:
        weights: name of a weight -> its integers. Tied weights are in it under each name.
        biases: name of a Gemm, or of the Add behind a MatMul -> its new bias, float32.
        layers: what was done to each product, in graph order.
        samples: how many samples were used.
    """

    weights: Mapping[str, BlockCodes]
    biases: Mapping[str, Floats]
    layers: Sequence[LayerRounding]
    samples: int

    def said(self) -> str:
        """What was done, in words; empty where nothing was."""
        known = [layer.choice for layer in self.layers if layer.choice.known]
        if not known:
            return ""
        learned = sum(choice.shrinkage is not None for choice in known)
        before, after = (float(np.median([getattr(c, n) for c in known])) for n in ("plain_db", "db"))
        wide = sum(layer.parts > 1 for layer in self.layers)
        said = (
            f"weights of {learned} of {len(self.layers)} products were rounded with data: {after:.1f} dB of their "
            f"outputs in the median, {before:.1f} dB without data, on rows that were not learned from"
        )
        said += f"; {len(self.biases)} biases were corrected" if self.biases else ""
        return said + (f"; inputs of {wide} were rounded in parts, by the memory budget" if wide else "")


@dataclass(frozen=True, slots=True)
class LayerRounding:
    """What was done to one product.

    Attributes:
        node: its name.
        choice: how it was rounded; of experts, of the first.
        parts: in how many parts its inputs were rounded, each for itself.
    """

    node: str
    choice: Choice
    parts: int


def rounded_weights(
    model: LeanModel,
    plan: Plan,
    feeds: Feeds,
    settings: Settings,
    *,
    scales: ScalesOf = lambda name: Scales(),
    ties: Mapping[str, str] | None = None,
    shrinkage: float | None = None,
) -> BlockRounding:
    """Round the weights of a model that its plan puts in blocks.

    Products in subgraphs, and weights that several products read, are left out; the student has their float weights.

    Memory: what two walks hold (see `Walk`), the results up to `memory.held_bytes()`, and for one product at a time
    the second moments of its inputs and some rows of its weight.

    Args:
        model: the prepared float model.
        plan: what is quantized, and how.
        feeds: samples, in an order whose beginning is spread over all of them. As many are used as have enough rows.
        settings: threads, and the progress callback.
        scales: by the name of a weight, how its scales are stored.
        ties: name of a product's weight -> name of the table with the same values, or their transpose.
        shrinkage: of all second moments towards their diagonal, 0 to 1, for samples that are not like real ones: then
            nothing else is learned from them, neither the error of earlier products nor biases. None to try several.

    Raises:
        ModelError: the model does not run.
    """
    graph = LayerGraph.of(model)
    products = products_of(graph, plan)
    if not products or not feeds:
        return BlockRounding({}, {}, (), 0)
    groups = by_input(products)
    feeds = _enough(model, groups[0][0], feeds, settings.threads)
    tables = tables_of(model, plan)
    shared = {p.weight: table for p in products if (table := (ties or {}).get(p.weight, p.weight)) in tables}
    with KeptArrays() as kept:
        means = shrinkage is None and any(product.bias for product in products)
        work = _Work(model, feeds, settings, scales, kept, means, shrinkage)
        work.fit_tables(tables)
        for group in groups:
            work.round_group(group)
            if settings.progress is not None:
                settings.progress("rounding weights", len(work.layers), len(products))
        work.settle(products, {weight: table for weight, table in shared.items() if weight in work.found})
        return BlockRounding(work.found, work.biases, tuple(work.layers), len(feeds))


def _enough(model: LeanModel, first: Product, feeds: Feeds, threads: int) -> Feeds:
    """As many of the samples as have enough rows in the input of the first product."""
    rows = 0
    for start in range(0, len(feeds), _FEWEST):
        batch = feeds[start : start + _FEWEST]
        values = Walk(model, batch, threads).values(first.input)
        for number in range(len(batch)):
            rows += int(np.prod(first.places(values[number].shape)))
            if start + number + 1 >= _FEWEST and rows >= _ROWS * 6 // 5:  # every sixth is not learned from
                return feeds[: start + number + 1]
    return feeds


@dataclass(slots=True)
class _Work:
    """The two walks, and what was found so far."""

    model: LeanModel
    feeds: Feeds
    settings: Settings
    scales: ScalesOf
    kept: KeptArrays
    means: bool  # whether means of the float network's inputs are needed, of all samples
    shrinkage: float | None
    found: dict[str, BlockCodes] = field(init=False, default_factory=dict)
    biases: dict[str, Floats] = field(init=False, default_factory=dict)
    layers: list[LayerRounding] = field(init=False, default_factory=list)
    _teacher: Walk = field(init=False)
    _student: Walk = field(init=False)
    _division: Division = field(init=False)
    _changed: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._division = Division.of(self.feeds, _ROWS)
        deciding = [self.feeds[number] for number in self._division.deciding]
        self._teacher = Walk(self.model, self.feeds if self.means else deciding, self.settings.threads)
        self._student = Walk(self.model, self.feeds, self.settings.threads)

    def fit_tables(self, tables: Mapping[str, QuantScheme]) -> None:
        """Round the tables that a Gather reads without data."""
        for name, scheme in tables.items():
            table = self.model.array(name)
            self._put(name, BlockCodes.joined(self._plain(table, scheme, name)))
            self._set(name, stored_floats(name, self.found[name], table.shape, transposed=False))

    def round_group(self, group: Sequence[Product]) -> None:
        """Round products that read the same tensor."""
        first = group[0]
        wanted, got = self._teacher.values(first.input), self._student.values(first.input)
        numbers = range(len(self.feeds)) if self.means else self._division.deciding
        trials = [
            Trial(
                Inputs(first, e, got, range(len(self.feeds)), self._division),
                Inputs(first, e, wanted, numbers, self._division),
                corrects=self.shrinkage is None,
            )
            for e in range(first.experts)
        ]  # fmt: skip
        for product in group:
            self._round(product, trials)

    def _round(self, product: Product, trials: Sequence[Trial]) -> None:
        weight, name = self.model.array(product.weight), product.weight
        parts, choices = list[BlockCodes](), list[Choice]()
        for expert, trial in enumerate(trials):
            table = product.table(weight, expert)
            fixed = self.shrinkage is not None
            choice = Choice(self.shrinkage) if fixed else trial.choose(product, table, self.scales(name))
            choices.append(choice)
            if choice.shrinkage is None:
                parts += self._plain(table, product.scheme, name)
            else:
                parts += trial.rounded(product, table, choice.shrinkage, self.scales(name))
        if all(choice.shrinkage is None for choice in choices) and name in self.found:  # a table, rounded already
            found = self.found[name]
        else:
            found = BlockCodes.joined(parts)
            self._put(name, found)
        self._set(name, product.stored(self.found[name]))
        self.layers.append(LayerRounding(product.node, choices[0], trials[0].parts))
        if product.bias and self.shrinkage is None:
            self._correct(product, trials[0], weight, found)

    def _correct(self, product: Product, trial: Trial, weight: NDArray[Any], found: BlockCodes) -> None:
        """Add what the mean output lacks to the bias."""
        table, old = product.table(weight, 0), self._student.constant(product.bias)
        missing = np.concatenate([
            trial.missing(table[rows], found.rows(rows).floats()) for rows in slabs(table.shape)
        ])  # fmt: skip
        bias = (old + missing.reshape(old.shape)).astype(np.float32)
        if np.isfinite(bias).all():
            self._set(product.bias, bias)
            self.biases[product.adds or product.node] = bias

    def settle(self, products: Sequence[Product], shared: Mapping[str, str]) -> None:
        """Give a table and the product that shares it the same integers: those whose outputs are closer."""
        stored = {product.weight: product for product in products}
        for weight, table in shared.items():
            learned, plain = self.found[weight], self.found.get(table)
            shape = self.model.kind_of(table)[1]
            if plain is None or learned is plain:
                continue
            if learned.params.scheme != plain.params.scheme:
                del self.found[weight], self.found[table]
                continue
            models = []
            for codes in (plain, learned):
                self._set(weight, stored[weight].stored(codes))
                self._set(table, stored_floats(table, codes, shape, transposed=False))
                models.append(self._student_model())
            before, after = self._measured(models)
            best = learned if after > before else plain
            self.found[weight] = self.found[table] = best
            self._set(weight, stored[weight].stored(best))
            self._set(table, stored_floats(table, best, shape, transposed=False))

    def _measured(self, models: Sequence[LeanModel]) -> list[float]:
        samples = [Sample(str(number), dict(self.feeds[number])) for number in self._division.deciding]
        found = measure_candidates(self.model, models, samples, threads=self.settings.threads)
        return [one.balanced_db for one in found]

    def _student_model(self) -> LeanModel:
        """The student so far."""
        small = {name: values for name, values in self._changed.items() if not isinstance(values, Constant)}
        large = {name: values for name, values in self._changed.items() if isinstance(values, Constant)}
        model = self.model.replaced(small)
        return replace(model, weights={**model.weights, **large})

    def _plain(self, table: NDArray[Any], scheme: QuantScheme, name: str) -> Iterable[BlockCodes]:
        for rows in slabs(table.shape):
            yield self.scales(name).fitted(np.ascontiguousarray(table[rows], np.float32), scheme)

    def _put(self, name: str, found: BlockCodes) -> None:
        self.found[name] = found.kept(self.kept.add)

    def _set(self, name: str, values: Any) -> None:
        self._changed[name] = values
        if self.shrinkage is None:
            self._student.set(name, values)
