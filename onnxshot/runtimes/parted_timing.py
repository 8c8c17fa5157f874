"""Time large models part by part, side by side: of each model, one part is in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from onnxshot import memory
from onnxshot.graph.lean_model import LeanModel
from onnxshot.progress import part_steps
from onnxshot.runtimes.interleaved_timing import time_interleaved
from onnxshot.runtimes.ort_session import Feed
from onnxshot.runtimes.part_session import PartSession, Values
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

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
    ends = [[info.name for info in model.proto.graph.output] for model in models]
    total: list[list[float]] = []
    step = part_steps()
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(Spool()) for _ in models]
        for number in range(len(first)):
            works = [
                _Work(PartSession(parts, number, feeds, spool, names, **how), len(feeds))
                for parts, spool, names in zip(cut, spools, ends, strict=True)
            ]
            times = time_interleaved(
                [work.run for work in works], range(len(feeds)), rounds, seconds / len(first), enough
            )
            for work in works:
                work.leave()
            del works
            memory.release()
            total = _added(total, times)
            if step is not None:
                step(number + 1, len(first), len(feeds), len(feeds))
    return total, len(first)


class _Work:
    """A part that takes its samples by number; they are read before it is timed."""

    def __init__(self, part: PartSession, samples: int) -> None:
        self._part = part
        self._feeds = [part.feed(sample) for sample in range(samples)]

    def run(self, sample: int) -> Values:
        return self._part.run(self._feeds[sample])

    def leave(self) -> None:
        for sample in range(len(self._feeds)):
            self._part.leave(sample, self.run(sample))


def _added(total: list[list[float]], times: list[list[float]]) -> list[list[float]]:
    """The rounds of all parts so far; as many as the part with the fewest has."""
    if not total:
        return times
    return [[a + b for a, b in zip(one, other, strict=True)] for one, other in zip(total, times, strict=False)]
