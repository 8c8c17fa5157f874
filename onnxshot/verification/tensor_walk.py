"""Walk the parts of two models side by side, and compare the tensors that both make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.graph.lean_model import LeanModel
from onnxshot.progress import part_steps
from onnxshot.runtimes.ort_runtime import is_large
from onnxshot.runtimes.parallel import in_order, split_threads
from onnxshot.runtimes.part_session import PartSession, Values
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool
from onnxshot.verification.tensor_errors import TensorSums

Tensors = Mapping[str, NDArray[Any]]
Seen = tuple[Sample, Tensors, Tensors]
"""A sample, and the outputs of both models on it."""

_ONE_AT_A_TIME = 16  # share of the held bytes of the tensors of one sample, above which samples run one at a time
_GUESS = 1 << 22  # bytes assumed for a tensor of unknown shape


def in_parts(
    judge: LeanModel, other: LeanModel, samples: Sequence[Sample], takes: Mapping[str, str],
    sums: Mapping[str, TensorSums], shapes: Mapping[str, tuple[int, ...]], outputs: Sequence[str], threads: int,
) -> Iterator[Seen]:  # fmt: skip
    """Run both models part by part, cut at the same places.

    Memory: a part of each model, whose weights are mapped, and `memory.held_bytes()` of tensors. A part with more is
    run several times.

    Args:
        judge: The float model.
        other: The model to compare with it; it is run without the runtime's optimizations.
        samples: Samples.
        takes: The tensors to compare: the name in the float model -> the name in the other.
        sums: What the errors are added to, by the name in the float model.
        shapes: Shapes of tensors of the float model, as far as they are known.
        outputs: Tensors of both models to return.
        threads: CPU threads in total.

    Yields:
        Each sample, with the outputs of both models on it.

    Raises:
        ModelError: A part does not load or run.
    """
    both = judge.exposing([*takes, *outputs]), other.exposing([*takes.values(), *outputs])
    lead = 0 if is_large(judge) else 1
    first = Parts(both[lead], memory.part_bytes())
    second = Parts(both[1 - lead], memory.part_bytes(), first.stops)
    cut = (first, second) if lead == 0 else (second, first)
    kept: list[tuple[Values, Values]] = [({}, {}) for _ in samples]
    with Spool() as left, Spool() as right, Spool() as waiting:
        walk = _Walk(cut, (left, right), waiting, samples, takes, sums, outputs)
        step, parts = part_steps(), max(map(len, cut))
        for number in range(parts):
            here = [n for n in takes if walk.makes(0, number, n) or walk.makes(1, number, takes[n])]
            for turn, names in enumerate(groups(here, shapes)):
                workers, each = workers_for(names, shapes, len(samples), threads)
                sessions = walk.opened(number, names, each)
                work = partial(walk.run, sessions, names, first=turn == 0)
                for sample, (wanted, got, own) in enumerate(in_order(work, range(len(samples)), workers)):
                    kept[sample][0].update(wanted)
                    kept[sample][1].update(got)
                    for name, part in own.items():
                        sums[name].join(part)
                    if step is not None and turn == 0:
                        step(number + 1, parts, sample + 1, len(samples))
                del sessions, work
                memory.release()
            walk.forget(number)
    for one, (wanted, got) in zip(samples, kept, strict=True):
        yield one, wanted, got


class _Walk:
    """What a walk over the parts of two models holds."""

    def __init__(
        self, cut: tuple[Parts, Parts], spools: tuple[Spool, Spool], waiting: Spool, samples: Sequence[Sample],
        takes: Mapping[str, str], sums: Mapping[str, TensorSums], outputs: Sequence[str],
    ) -> None:  # fmt: skip
        self._cut, self._spools, self._waiting = cut, spools, waiting
        self._feeds = [sample.feed for sample in samples]
        self._takes, self._sums, self._outputs = takes, sums, outputs
        self._last = [{name: i for i, part in enumerate(parts.parts) for name in part.reads} for parts in cut]

    def makes(self, which: int, number: int, name: str) -> bool:
        """Whether this part of a model makes a tensor."""
        parts = self._cut[which].parts
        return number < len(parts) and name in parts[number].makes

    def opened(self, number: int, names: Sequence[str], threads: int) -> tuple[PartSession | None, PartSession | None]:
        """The part of both models, which gives these tensors; None for a model that has fewer parts."""
        wanted = [*names, *self._outputs], [*(self._takes[name] for name in names), *self._outputs]
        how: tuple[dict[str, Any], dict[str, Any]] = ({"inner": True}, {"optimize": False})
        found = [
            PartSession(parts, number, self._feeds, spool, asked, threads=threads, whole=True, pack=False, **options)
            if number < len(parts) else None
            for parts, spool, asked, options in zip(self._cut, self._spools, wanted, how, strict=True)
        ]  # fmt: skip
        return found[0], found[1]

    def run(
        self, sessions: tuple[PartSession | None, PartSession | None], names: Sequence[str], sample: int, *, first: bool
    ) -> tuple[Values, Values, dict[str, TensorSums]]:
        """Run a part of both models on a sample: the outputs of each, and the errors of the tensors on it.

        A tensor that the other model makes in another part waits.
        """
        values: list[Values] = [{}, {}]
        for which, session in enumerate(sessions):
            if session is not None:
                values[which] = session.run(session.feed(sample))
                if first:
                    session.leave(sample, values[which])
        wanted, got = values
        own = {name: self._sums[name].empty() for name in names}
        for name in names:
            taken = self._takes[name]
            keys = (sample, 0, name), (sample, 1, taken)
            if name in wanted and taken not in got and keys[1] in self._waiting:
                own[name].add(wanted[name], self._waiting.get(keys[1]))
            elif taken in got and name not in wanted and keys[0] in self._waiting:
                own[name].add(self._waiting.get(keys[0]), got[taken])
            elif name in wanted and taken in got:
                own[name].add(wanted[name], got[taken])
            elif name in wanted:
                self._waiting.put(keys[0], wanted[name])
            elif taken in got:
                self._waiting.put(keys[1], got[taken])
        shown = [{name: side[name].copy() for name in self._outputs if name in side} for side in values]
        return shown[0], shown[1], own

    def forget(self, number: int) -> None:
        """Let go what no part behind this one reads."""
        for last, spool in zip(self._last, self._spools, strict=True):
            for name in (name for name, end in last.items() if end == number):
                for sample in range(len(self._feeds)):
                    spool.drop((sample, name))


def workers_for(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], samples: int, threads: int
) -> tuple[int, int]:
    """How many samples run at once, and the threads of each: one at a time where their tensors are large."""
    size = sum(8 * math.prod(shapes[name]) for name in names if name in shapes)
    return split_threads(threads, 1 if size > memory.held_bytes() // _ONE_AT_A_TIME else samples)


def groups(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Split the names so that float32 tensors of both models in one group fit the held bytes; at least one group."""
    group, size, held = list[str](), 0, memory.held_bytes()
    for name in names:
        need = 8 * math.prod(shapes[name]) if name in shapes else _GUESS
        if group and size + need > held:
            yield group
            group, size = [], 0
        group.append(name)
        size += need
    yield group
