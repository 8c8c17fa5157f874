"""Make the outputs of two models comparable: equal random numbers, equal picks of TopK, no copied inputs.

Models are edited for this only if they must be, and only in memory. Files are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.copied_outputs import Copied, add_computed, copied_outputs
from onnxshot.comparison.ordering_nodes import (
    Order,
    add_orders,
    nearly_equal,
    ordering_nodes,
    ordering_nodes_in_subgraphs,
    same_nodes,
    visible_outputs,
)
from onnxshot.comparison.proto_edits import PREFIX, parsed
from onnxshot.comparison.random_nodes import RandomSource, fix_randomness, inlined, random_sources
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Feed, Runnable, Runner
from onnxshot.runtimes.parallel import in_order

Tensors = Mapping[str, NDArray[Any]]

_MOST_ORDERS = 24  # most orders tried one by one; if there are more, all count as visible in all outputs
_BEFORE = f"{PREFIX}before/"


@dataclass(frozen=True, slots=True)
class ComparisonSetup:
    """How other models are compared with a reference. `comparison_setup` makes it.

    Attributes:
        reference: The float model to run, edited if it must be.
        random_nodes: Nodes that draw random numbers. Both models draw the same ones.
        orders: Ordering nodes whose order is visible in outputs. The other model must pick what the reference picks.
        ordered_outputs: Outputs in which the order is visible, by number of the ordering node.
        copied: Outputs that copy inputs, partly or entirely.
        inside: Ordering nodes in loops and branches, which are left alone.
        missing_order: Ordering node of the reference that the other model lacks.
        failed: Why models are compared without edits although edits are needed.
        differs: True if two runs of the edited reference still differ.
    """

    reference: Runnable
    random_nodes: tuple[RandomSource, ...] = ()
    orders: tuple[Order, ...] = ()
    ordered_outputs: Mapping[int, frozenset[str]] = field(default_factory=dict)
    copied: tuple[Copied, ...] = ()
    inside: tuple[str, ...] = ()
    missing_order: str = ""
    failed: str = ""
    differs: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make the models comparable, one note each."""
        found = []
        if self.random_nodes:
            some = _list([source.node for source in self.random_nodes])
            found.append(f"draws random numbers, in {some}: outputs change with each run; compared with equal numbers")
        if self.differs:
            found.append("two runs of the float model give different outputs: the figures include that difference")
        if self.failed:
            found.append(f"the figures include random numbers, changed orders and copied inputs: {self.failed}")
        if self.copied:
            some = _list([one.output for one in self.copied])
            found.append(f"the figures leave out the part that copies inputs, of output {some}")
        if self.missing_order:
            found.append(f"compared element by element: the candidate lacks {self.missing_order}, which orders outputs")
        if self.inside:
            found.append(f"{_list(self.inside)} in a loop or branch may order outputs: compared element by element")
        return tuple(found)

    @property
    def plain(self) -> bool:
        """Whether models run without edits."""
        return not (self.random_nodes or self.orders or self.copied)

    def prepared(self, model: Runnable) -> Runnable:
        """The edited copy of a model that is compared with the reference.

        Raises:
            ModelError: The model cannot be read, or lacks a node whose picks are imposed.
        """
        if self.plain:
            return model
        lean = LeanModel.of(model)
        proto = inlined(lean.outline())
        copied = tuple(one for one in copied_outputs(proto) if one in self.copied)
        hidden = {one.output for one in copied}
        add_computed(proto, copied)
        if self.orders:
            if same_nodes(proto, self.orders) is None:
                raise ModelError(f"a model lacks {self.orders[0].op} {self.orders[0].node!r}, which orders outputs")
            add_orders(proto, self.orders, self.orders)
        kept = [output for output in proto.graph.output if output.name not in hidden]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
        if self.random_nodes:
            fix_randomness(proto, self.random_nodes)
        return lean.in_shape_of(proto)

    def load_candidate(
        self, model: Runnable, source: Runnable, threads: int
    ) -> tuple[ComparisonSetup, CandidateRunner]:
        """Load a model to compare it with the reference.

        If the edited model does not load although the model itself does, both are compared without edits.

        Args:
            model: The model to compare.
            source: File of the unedited reference.
            threads: CPU threads of the session.

        Returns:
            The setup to use from now on, and the loaded model.
        """
        setup = self.without_missing_orders(model)
        try:
            return setup, CandidateRunner(setup, model, threads=threads)
        except ModelError as e:
            setup = ComparisonSetup(source, inside=setup.inside, failed=e.message)
            return setup, CandidateRunner(setup, model, threads=threads)

    def without_missing_orders(self, model: Runnable) -> ComparisonSetup:
        """The setup for this model, which another tool may have made.

        If it lacks an ordering node, outputs are compared element by element. Raises ModelError if it cannot be read.
        """
        if not self.orders or same_nodes(parsed(model), self.orders) is not None:
            return self
        order = self.orders[0]
        return replace(self, orders=(), ordered_outputs={}, missing_order=f"{order.op} {order.node!r}")

    def feed(self, feed: Feed, wanted: Tensors) -> Feed:
        """What to feed the other model, given the reference's outputs on the same sample."""
        if not self.orders:
            return feed
        imposed = {k: v for order in self.orders for k, v in order.feed(wanted[order.picks]).items()}
        return {**feed, **imposed}

    def sample(self, sample: Sample, wanted: Tensors) -> Sample:
        """The sample, extended by what the other model is fed."""
        return Sample(sample.name, dict(self.feed(sample.feed, wanted))) if self.orders else sample

    def has_picks(self, got: Tensors) -> bool:
        """Whether these outputs come from a model that picked what was imposed."""
        return not self.orders or self.orders[0].picks in got

    @property
    def unordered(self) -> ComparisonSetup:
        """The same setup, but every model picks for itself."""
        return replace(self, orders=())

    def compared(self, names: Iterable[str], other: Iterable[str]) -> list[str]:
        """The outputs to compare among those that both models have."""
        there, helpers = set(other), {n for order in self.orders for n in (order.picks, order.boxes)}
        whole = {one.output for one in self.copied if not one.judged or one.judged in there}
        return [n for n in names if n in there and n not in helpers and n not in whole]

    def output_name(self, name: str) -> str:
        """What a report calls an output of an edited model."""
        if name.startswith(_BEFORE):
            order = next(o for o in self.orders if o.number == int(name.split("/")[2]))
            return f"what {order.op} {order.node!r} orders by"
        return next((one.output for one in self.copied if one.judged == name), name)

    def is_sort_key(self, name: str) -> bool:
        """Whether this output was added because an ordering node sorts by it."""
        return name.startswith(_BEFORE)

    def shared_picks(self, wanted: Tensors, got: Tensors) -> Iterator[tuple[Order, int, int]]:
        """For each ordering node: the node, the number of picks that both models share, and the number of picks."""
        for order in self.orders if self.has_picks(got) else ():
            yield order, *order.matched(wanted, got)


class CandidateRunner:
    """A model loaded for comparison with the reference.

    If the imposed picks do not fit on a sample, as when their number depends on values, it picks for itself there.
    """

    def __init__(self, setup: ComparisonSetup, model: Runnable, *, threads: int, optimize: bool = True) -> None:
        self._setup, self._model, self._threads, self._optimize = setup, model, threads, optimize
        self._imposed = Runner(setup.prepared(model), threads=threads, optimize=optimize, whole=True)
        self._free: Runner | None = None
        self.outputs, self.skipped = self._imposed.outputs, self._imposed.skipped

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Outputs by name; without picks and sort keys if it picked for itself. Raises ModelError if the run fails."""
        try:
            return self._imposed.run(feed)
        except ModelError:
            if not self._setup.orders:
                raise
        return self._choosing().run(feed)

    def run_all(self, feeds: Iterable[Feed], workers: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield what `run` returns for every sample, in order. A model in parts goes through them once.

        In parts, all samples from one on whose picks do not fit are run without them.
        """
        if self.in_parts == 1:
            yield from in_order(self.run, feeds, workers)
            return
        feeds = list(feeds) if self._setup.orders else feeds
        done = 0
        try:
            for found in self._imposed.run_all(feeds, workers):
                done += 1
                yield found
        except ModelError:
            if not isinstance(feeds, list):
                raise
            yield from self._choosing().run_all(feeds[done:], workers)

    @property
    def in_parts(self) -> int:
        """The number of parts; 1 for a model that runs as a whole."""
        return self._imposed.in_parts

    def _choosing(self) -> Runner:
        """The model, picking for itself."""
        if self._free is None:
            self._free = Runner(
                self._setup.unordered.prepared(self._model), threads=self._threads, optimize=self._optimize, whole=True
            )
        return self._free


def comparison_setup(reference: Runnable, feed: Feed) -> ComparisonSetup:
    """Find out how models must be compared with this reference.

    Args:
        reference: The float model, a file or serialized.
        feed: One sample, which shows whether an order is visible in the outputs.

    Raises:
        ModelError: The reference cannot be read or does not run.
    """
    proto = inlined(parsed(reference))
    noise, copied = random_sources(proto), copied_outputs(proto)
    found, inside = ordering_nodes(proto), ordering_nodes_in_subgraphs(proto)
    if not any(one.judged for one in copied) and len(copied) == len(proto.graph.output):
        copied = ()  # nothing would be left to compare
    if not (noise or copied or found):
        return ComparisonSetup(reference, inside=inside)
    try:
        lean = LeanModel.of(reference)
        whole = inlined(lean.outline())
        seen = _visible_outputs(lean, whole, noise, found, feed) if found else {}
        kept = tuple(order for order in found if order.number in seen)
        if not (noise or copied or kept):
            return ComparisonSetup(reference, inside=inside)
        add_computed(whole, copied)
        add_orders(whole, kept, ())
        fix_randomness(whole, noise)
        changed = lean.in_shape_of(whole)
        differs = _differs(changed, feed)
    except ModelError as e:
        Runner(reference).run(feed)  # raises if the model itself does not run
        return ComparisonSetup(reference, inside=inside, failed=e.message)
    return ComparisonSetup(changed, noise, kept, seen, copied, inside, differs=differs)


def _differs(model: LeanModel, feed: Feed) -> bool:
    """Whether two runs of a model differ by more than the order of additions explains."""
    runner = Runner(model)
    first, second = runner.run(feed), runner.run(feed)
    return not all(nearly_equal(first[name], second[name]) for name in first)


def _visible_outputs(
    lean: LeanModel, proto: ModelProto, noise: tuple[RandomSource, ...], found: tuple[Order, ...], feed: Feed
) -> dict[int, frozenset[str]]:
    """The outputs in which each order is visible, found by reversing one order at a time."""

    def run(imposed: tuple[Order, ...], given: Feed) -> Tensors:
        copy = parsed(proto)
        add_orders(copy, found, imposed)
        fix_randomness(copy, noise)
        return Runner(lean.in_shape_of(copy), optimize=False).run(given)

    outputs = [output.name for output in proto.graph.output]
    base = run((), feed)
    turned = dict[int, Tensors | None]()
    for order in found:
        picks = order.reversed_picks(base[order.picks])
        if order.op == "TopK" and picks is None:
            turned[order.number] = base  # a single pick has no order
        elif picks is None or len(found) > _MOST_ORDERS:
            turned[order.number] = None
        else:
            turned[order.number] = run((order,), {**feed, **order.feed(picks)})
    return visible_outputs(found, base, turned, outputs)


def _list(names: Sequence[str]) -> str:
    some = ", ".join(map(repr, names[:3]))
    return f"{some} and {len(names) - 3} more" if len(names) > 3 else some
