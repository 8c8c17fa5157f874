"""What a model is judged by: its outputs, without what chance, order and copies make of them.

Models are changed for this only where they must be, in memory: what is written is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.copied_outputs import Copied, add_computed, copied_outputs
from onnxshot.comparison.ordering_nodes import Order, add_orders, alike, orders, orders_inside, same_nodes, seen_in
from onnxshot.comparison.proto_edits import PREFIX, parsed
from onnxshot.comparison.random_nodes import RandomSource, fix_randomness, inlined, random_sources
from onnxshot.errors import ModelError
from onnxshot.runtimes.ort_runtime import Feed, Runner, stored_bytes

Tensors = Mapping[str, NDArray[Any]]

LIMIT = 1_500_000_000
"""Bytes of weights above which models are judged as they are: they would be copied in memory."""
_MOST_ORDERS = 24  # that are tried one by one whether outputs show them; of more, all are taken to be seen
_BEFORE = f"{PREFIX}before/"


@dataclass(frozen=True, slots=True)
class ComparisonSetup:
    """How other models are held against one; `of` finds it.

    Attributes:
        reference: the float model to run.
        noise: nodes that draw random numbers, which both models draw alike.
        orders: nodes whose order outputs show; the other model is made to pick what the reference picks.
        seen: by number of the order, the outputs that show it.
        copied: outputs that are copies of inputs in part or as a whole.
        inside: nodes of loops and branches that order, which are left as they are.
        lacking: what orders the reference, and has no twin in the other model.
        failed: why models are compared as they are, although something should be kept out.
        differs: two runs of the reference differ nevertheless.
    """

    reference: Path | bytes
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
        """What was done about the model, in words."""
        found = []
        if self.random_nodes:
            some = _list([source.node for source in self.random_nodes])
            found.append(f"draws random numbers, in {some}: each run gives other outputs; compared with the same ones")
        if self.differs:
            found.append("two runs of the float model give different outputs: figures hold that difference too")
        if self.failed:
            found.append(f"random numbers, orders and copies are in the figures: {self.failed}")
        if self.copied:
            some = _list([one.output for one in self.copied])
            found.append(f"copies of inputs are no part of the figures, of output {some}")
        if self.missing_order:
            found.append(f"compared place by place: the candidate lacks {self.missing_order}, which orders outputs")
        if self.inside:
            found.append(f"{_list(self.inside)} in a loop or branch may order outputs: compared place by place")
        return tuple(found)

    @property
    def plain(self) -> bool:
        """Whether models are run as they are."""
        return not (self.random_nodes or self.orders or self.copied)

    def prepared(self, model: Path | bytes) -> Path | bytes:
        """The model to run in place of one that is held against the reference.

        Raises ModelError where it cannot be read, or lacks a node whose order is imposed.
        """
        if self.plain:
            return model
        proto = inlined(_whole(model))
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
        return bytes(proto.SerializeToString())

    def load_candidate(
        self, model: Path | bytes, source: Path | bytes, threads: int
    ) -> tuple[ComparisonSetup, CandidateRunner]:
        """How a model is held against the reference, whose file is `source`, and the model as it is run for that.

        Where what would be run does not load, although the model does, both are compared as they are.
        """
        how = self.without_missing_orders(model)
        try:
            return how, CandidateRunner(how, model, threads=threads)
        except ModelError as e:
            how = ComparisonSetup(source, inside=how.inside, failed=e.message)
            return how, CandidateRunner(how, model, threads=threads)

    def without_missing_orders(self, model: Path | bytes) -> ComparisonSetup:
        """How this model is held against the reference, which may have been made by another tool.

        Where it lacks a node that orders, both are compared place by place. Raises ModelError where it cannot be read.
        """
        if not self.orders or same_nodes(parsed(model), self.orders) is not None:
            return self
        order = self.orders[0]
        return replace(self, orders=(), ordered_outputs={}, missing_order=f"{order.op} {order.node!r}")

    def feed(self, feed: Feed, wanted: Tensors) -> Feed:
        """What the other model is fed, once the reference has been run on the feed."""
        if not self.orders:
            return feed
        imposed = {k: v for order in self.orders for k, v in order.feed(wanted[order.picks]).items()}
        return {**feed, **imposed}

    def sample(self, sample: Sample, wanted: Tensors) -> Sample:
        """The sample with what the other model is fed."""
        return Sample(sample.name, dict(self.feed(sample.feed, wanted))) if self.orders else sample

    def has_picks(self, got: Tensors) -> bool:
        """Whether these outputs are of a model that picked what was imposed."""
        return not self.orders or self.orders[0].picks in got

    @property
    def unordered(self) -> ComparisonSetup:
        """The same, but every model picks for itself."""
        return replace(self, orders=())

    def compared(self, names: Iterable[str], other: Iterable[str]) -> list[str]:
        """The outputs of both models that are held against each other."""
        there, helpers = set(other), {n for order in self.orders for n in (order.picks, order.boxes)}
        whole = {one.output for one in self.copied if not one.judged or one.judged in there}
        return [n for n in names if n in there and n not in helpers and n not in whole]

    def output_name(self, name: str) -> str:
        """What a report calls an output of a judged model."""
        if name.startswith(_BEFORE):
            order = next(o for o in self.orders if o.number == int(name.split("/")[2]))
            return f"what {order.op} {order.node!r} orders by"
        return next((one.output for one in self.copied if one.judged == name), name)

    def is_sort_key(self, name: str) -> bool:
        """Whether an output of a judged model is what an order is made by, and no output of the model itself."""
        return name.startswith(_BEFORE)

    def shared_picks(self, wanted: Tensors, got: Tensors) -> Iterator[tuple[Order, int, int]]:
        """(order, picks that both models have, picks)."""
        for order in self.orders if self.has_picks(got) else ():
            yield order, *order.matched(wanted, got)


class CandidateRunner:
    """A model as it is run to be held against the reference.

    Where a sample's picks do not fit it, as where their number depends on values, it picks for itself on that sample.
    """

    def __init__(self, how: ComparisonSetup, model: Path | bytes, *, threads: int, optimize: bool = True) -> None:
        self._how, self._model, self._threads, self._optimize = how, model, threads, optimize
        self._imposed = Runner(how.prepared(model), threads=threads, optimize=optimize, whole=True)
        self._free: Runner | None = None
        self.outputs, self.skipped = self._imposed.outputs, self._imposed.skipped

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Its outputs by name; without picks and keys where it picked for itself. Raises ModelError."""
        try:
            return self._imposed.run(feed)
        except ModelError:
            if not self._how.orders:
                raise
        if self._free is None:
            self._free = Runner(
                self._how.unordered.prepared(self._model), threads=self._threads, optimize=self._optimize, whole=True
            )
        return self._free.run(feed)


def comparison_setup(reference: Path | bytes, feed: Feed) -> ComparisonSetup:
    """How models are to be held against this one. feed: a sample, which tells whether outputs show an order.

    Raises ModelError where the model cannot be read or does not run.
    """
    proto = inlined(parsed(reference))
    noise, copied, found, inside = random_sources(proto), copied_outputs(proto), orders(proto), orders_inside(proto)
    if not any(one.judged for one in copied) and len(copied) == len(proto.graph.output):
        copied = ()  # there would be nothing left to judge
    if not (noise or copied or found):
        return ComparisonSetup(reference, inside=inside)
    if _bytes(reference) > LIMIT:
        return ComparisonSetup(reference, inside=inside, failed=f"the model has over {LIMIT / 1e9} GB")
    try:
        whole = inlined(_whole(reference))
        seen = _seen(whole, noise, found, feed) if found else {}
        kept = tuple(order for order in found if order.number in seen)
        if not (noise or copied or kept):
            return ComparisonSetup(reference, inside=inside)
        add_computed(whole, copied)
        add_orders(whole, kept, ())
        fix_randomness(whole, noise)
        changed = bytes(whole.SerializeToString())
        differs = _differs(changed, feed)
    except ModelError as e:
        Runner(reference).run(feed)  # it may be the model that does not run
        return ComparisonSetup(reference, inside=inside, failed=e.message)
    return ComparisonSetup(changed, noise, kept, seen, copied, inside, differs=differs)


def _differs(model: bytes, feed: Feed) -> bool:
    """Whether two runs of a model differ by more than sums in another order do."""
    runner = Runner(model)
    first, second = runner.run(feed), runner.run(feed)
    return not all(alike(first[name], second[name]) for name in first)


def _seen(
    proto: ModelProto, noise: tuple[RandomSource, ...], found: tuple[Order, ...], feed: Feed
) -> dict[int, frozenset[str]]:
    """The outputs that show each order, found by turning one after another around."""

    def run(imposed: tuple[Order, ...], given: Feed) -> Tensors:
        copy = parsed(proto)
        add_orders(copy, found, imposed)
        fix_randomness(copy, noise)
        return Runner(copy.SerializeToString(), optimize=False).run(given)

    outputs = [output.name for output in proto.graph.output]
    base = run((), feed)
    turned = dict[int, Tensors | None]()
    for order in found:
        picks = order.turned(base[order.picks])
        if order.op == "TopK" and picks is None:
            turned[order.number] = base  # a single one has no order
        elif picks is None or len(found) > _MOST_ORDERS:
            turned[order.number] = None
        else:
            turned[order.number] = run((order,), {**feed, **order.feed(picks)})
    return seen_in(found, base, turned, outputs)


def _whole(model: Path | bytes) -> ModelProto:
    """The model with its external data."""
    return parsed(model) if isinstance(model, bytes) else onnx.load(str(model), format="protobuf")


def _bytes(model: Path | bytes) -> int:
    return len(model) if isinstance(model, bytes) else stored_bytes(model)


def _list(names: Sequence[str]) -> str:
    some = ", ".join(map(repr, names[:3]))
    return f"{some} and {len(names) - 3} more" if len(names) > 3 else some
