"""Time large models part by part, side by side: of each model, one part is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.interleaved_timing import time_interleaved
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import Feed, SessionRunner
from onnxshot.runtimes.parted_run import as_declared
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

_Values = dict[str, NDArray[Any]]
_MOST_FEEDS = 4  # samples that are timed: of each, what crosses from part to part is held


def time_in_parts(
    models: Sequence[LeanModel],
    feeds: Sequence[Feed],
    rounds: int,
    seconds: float,
    enough: Callable[[list[list[float]]], bool],
    **how: Any,
) -> tuple[list[list[float]], int]:
    """Time models part by part, and add up the parts. All are cut where the first is.

    Within a part the models are timed as `time_interleaved` does, on the same samples.

    Memory: a part of each model, with packed weights, and what crosses for a few samples.

    Args:
        models: The models; the first one has more than `memory.part_bytes()` of weights.
        feeds: Samples.
        rounds: Most rounds of each part.
        seconds: Approximate time limit per model, for all parts together.
        enough: Called with the milliseconds of a part so far, after each round; says whether they suffice.
        **how: Arguments of `SessionRunner`.

    Returns:
        [rounds, models] milliseconds, and the number of parts.

    Raises:
        ModelError: A part does not load or run.
    """
    feeds = feeds[:_MOST_FEEDS]
    first = Parts(models[0], memory.part_bytes())
    cut = [first, *(Parts(model, memory.part_bytes(), first.stops) for model in models[1:])]
    total: list[list[float]] = []
    with Spool() as spool:
        for number in range(len(first)):
            works = [_Part(parts, model, which, number, feeds, spool, how)
                     for which, (parts, model) in enumerate(zip(cut, models, strict=True))]  # fmt: skip
            times = time_interleaved(
                [work.run for work in works], range(len(feeds)), rounds, seconds / len(first), enough
            )
            for work in works:
                work.pass_on()
            del works
            memory.release()
            total = _added(total, times)
    return total, len(first)


def _added(total: list[list[float]], times: list[list[float]]) -> list[list[float]]:
    """The rounds of all parts so far; as many as the part with the fewest has."""
    if not total:
        return times
    return [[a + b for a, b in zip(one, other, strict=True)] for one, other in zip(total, times, strict=False)]


class _Part:
    """A part of a model in a session, which takes its samples by number."""

    def __init__(
        self, parts: Parts, model: LeanModel, which: int, number: int, feeds: Sequence[Feed], spool: Spool,
        how: dict[str, Any],
    ) -> None:  # fmt: skip
        self._part, self._which, self._spool = parts.parts[number], which, spool
        self._feeds = [as_declared(self._given(parts.label, i, feed), parts.kinds) for i, feed in enumerate(feeds)]
        ends = [info.name for info in model.proto.graph.output]
        self._wanted = list(dict.fromkeys((*self._part.passes, *(n for n in ends if n in self._part.makes))))
        self._runner: SessionRunner | None = None
        if self._part.nodes and self._wanted:
            model = parts.model_of(number, self._wanted, self._feeds[0])
            with serialized(model) as (source, folder):
                self._runner = SessionRunner(source, folder=folder, label=parts.label, **how)

    def _given(self, label: str, sample: int, feed: Feed) -> _Values:
        found = {}
        for name in self._part.reads:
            if (self._which, sample, name) in self._spool:
                found[name] = self._spool.get((self._which, sample, name))
            elif name in feed:
                found[name] = feed[name]
            else:
                raise ModelError(f"{label} asks for input {name!r}, which the sample does not hold")
        return found

    def run(self, sample: int) -> _Values:
        """Run it on a sample."""
        if self._runner is None:
            return {}
        return self._runner.run(self._feeds[sample], [n for n in self._wanted if n not in self._runner.skipped])

    def pass_on(self) -> None:
        """Put what later parts read into the spool."""
        if not self._part.passes:
            return
        for sample in range(len(self._feeds)):
            values = self.run(sample)
            for name in self._part.passes:
                self._spool.put((self._which, sample, name), values[name])


