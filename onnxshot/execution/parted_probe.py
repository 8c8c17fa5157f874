"""Observe the tensors of a model that runs in parts: each part reduces its own tensors in its session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxshot import memory
from onnxshot.calibration.observers import Glimpse, glimpse
from onnxshot.comparison.random_nodes import fix_randomness
from onnxshot.errors import ModelError
from onnxshot.execution.calibration_journal import Chunk
from onnxshot.execution.instrumented_model import LEAST_OPSET, Layouts, Shape, instrument
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_runtime import CPU, Feed
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.runtimes.parted_run import Opened, Step, walk_parts
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

_INPUTS = -1  # stands for a part: the observed tensors that are inputs of the model


@dataclass(frozen=True, slots=True)
class _Reduced:
    """Which tensors a glimpse is of, by their numbers among all that are observed."""

    numbers: tuple[int, ...]
    seen: Glimpse


class PartedProbe:
    """Yields glimpses of the named tensors, one per sample, of a model that is run in parts.

    Memory: one part, one sample in it, and `memory.held_bytes()` each of what crosses and of glimpses.

    Args:
        model: The model.
        names: Tensors to observe.
        channels: Those of `names` that are also reduced per channel of their last axis.
        threads: CPU threads of each session.
        providers: Execution providers of ONNX Runtime.
        limit: Most bytes of weights of a part; by default `memory.part_bytes()`.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        channels: Collection[str],
        *,
        threads: int,
        providers: Sequence[str] = CPU,
        limit: int | None = None,
    ) -> None:
        tensors = model.tensors()
        self._model = LeanModel.of(model).edited(fix_randomness)
        self.parts = Parts(self._model, memory.part_bytes() if limit is None else limit)
        self._names = {name: number for number, name in enumerate(names)}
        self._channels = set(channels)
        self._shapes: Mapping[str, Shape | None] = {name: model.shape(tensors[name]) for name in names}
        self._casts = {name for name in names if model.elem_type(tensors[name]) != TensorProto.FLOAT}
        self._opset, self._check = model.opset, model.check_files
        self._how: dict[str, Any] = {"threads": threads, "providers": providers, "keep_plans": False, "inner": True}
        self._inputs = [spec.name for spec in model.graph.inputs if spec.name in self._names]

    def observe_all(
        self, feeds: Sequence[Feed], workers: int, step: Step | None = None, kept: Chunk | None = None
    ) -> Iterator[Glimpse]:
        """Yield the glimpse of every sample, in order, after all parts have run on all of them.

        Args:
            feeds: The samples.
            workers: Samples that run at once.
            step: Called after each sample of each part.
            kept: What an earlier run found of these samples; what is found here is added.

        Raises:
            ModelError: The model does not run on a sample.
        """
        with Spool() as spool:
            where: list[dict[int, _Kept]] = [{} for _ in feeds]
            for sample, feed in enumerate(feeds):
                numbers = [self._names[name] for name in self._inputs]
                seen = glimpse([feed[name] for name in self._inputs], self._by_channel(self._inputs))
                where[sample][_INPUTS] = _Kept.of(spool, (sample, _INPUTS), _Reduced(tuple(numbers), seen))
            count = self.parts.until(self._names)
            checkpoint = None if kept is None else _Checkpoint(kept, self.parts, count, spool, where, step, self._check)
            for part, sample, found in walk_parts(
                self.parts, feeds, self._opened, workers=workers, step=step, count=count, checkpoint=checkpoint
            ):  # fmt: skip
                where[sample][part] = _Kept.of(spool, (sample, part), found)
            for found_of in where:
                yield _joined([one.read(spool) for one in found_of.values()], len(self._names))

    def _by_channel(self, names: Sequence[str]) -> list[int]:
        return [i for i, name in enumerate(names) if name in self._channels]

    def _opened(self, number: int, model: LeanModel, passes: Sequence[str]) -> Opened[_Reduced]:
        makes = self.parts.parts[number].makes
        own = [name for name in self._names if name in makes]
        if not own and not passes:
            return lambda feed: ({}, _Reduced((), glimpse([])))
        numbers = tuple(self._names[name] for name in own)
        outside = self._outside(model, own, passes)
        layouts = Layouts(own, self._by_channel(own))
        runner: SessionRunner | None = None
        if self._opset >= LEAST_OPSET and own:
            with contextlib.suppress(ModelError):
                runner = self._loaded(model.edited(lambda proto: self._instrumented(proto, own, passes)))

        def run(feed: Feed) -> tuple[Mapping[str, NDArray[Any]], _Reduced]:
            if runner is not None:
                found = runner.run(feed)
                seen = layouts.glimpse(found)
                if seen is not None:
                    return found, _Reduced(numbers, seen)
            return outside.run(feed)

        return run

    def _instrumented(self, proto: ModelProto, own: Sequence[str], passes: Sequence[str]) -> None:
        kept = {info.name: info for info in proto.graph.output}
        shapes = {name: self._shapes[name] for name in own}
        instrument(proto, own, self._channels.intersection(own), self._casts.intersection(own), shapes, self._opset)
        made = list(proto.graph.output)
        del proto.graph.output[:]
        proto.graph.output.extend([*(kept[name] for name in passes), *made])

    def _loaded(self, model: LeanModel) -> SessionRunner:
        packed = model.weight_bytes <= memory.part_bytes()
        with serialized(model) as (source, folder):
            return SessionRunner(source, folder=folder, label=model.label, pack=packed, **self._how)

    def _outside(self, model: LeanModel, own: Sequence[str], passes: Sequence[str]) -> _Outside:
        return _Outside(self, model, own, passes)


class _Outside:
    """Runs a part that cannot be instrumented: returns whole tensors and reduces them in numpy."""

    def __init__(self, probe: PartedProbe, model: LeanModel, own: Sequence[str], passes: Sequence[str]) -> None:
        self._probe, self._own = probe, own
        self._model = model.with_outputs([*passes, *own])
        self._runner: SessionRunner | None = None

    def run(self, feed: Feed) -> tuple[Mapping[str, NDArray[Any]], _Reduced]:
        if self._runner is None:
            self._runner = self._probe._loaded(self._model)
        found = self._runner.run(feed)
        seen = glimpse([found[name] for name in self._own], self._probe._by_channel(self._own))
        return found, _Reduced(tuple(self._probe._names[name] for name in self._own), seen)


_ARRAYS = ("sizes", "picked", "rows", "picks", "bottoms", "tops")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A glimpse whose arrays are in a spool."""

    key: tuple[int, int]
    numbers: tuple[int, ...]
    channels: tuple[int, ...]

    @classmethod
    def of(cls, spool: Spool, key: tuple[int, int], found: _Reduced) -> _Kept:
        for name in _ARRAYS:
            spool.put((*key, name), getattr(found.seen, name))
        for number, values in found.seen.absmax.items():
            spool.put((*key, number), values)
        return cls(key, found.numbers, tuple(found.seen.absmax))

    def read(self, spool: Spool) -> _Reduced:
        arrays = [spool.get((*self.key, name)) for name in _ARRAYS]
        absmax = {number: spool.get((*self.key, number)) for number in self.channels}
        for name in (*_ARRAYS, *self.channels):
            spool.drop((*self.key, name))
        sizes, picked, rows, picks, bottoms, tops = arrays
        return _Reduced(self.numbers, Glimpse(sizes, picked, rows, picks, bottoms, tops, absmax))


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Keeps the glimpses of finished parts, and what crosses from them.

    Attributes:
        kept: Where.
        parts: The parts.
        count: Number of parts that run.
        spool: Holds the arrays of glimpses.
        where: For each sample, the glimpse of each part.
        step: Is told if nothing is left to run.
        check: Raises ModelError if the model's files have changed: the next run would take over what others gave.
    """

    kept: Chunk
    parts: Parts
    count: int
    spool: Spool
    where: list[dict[int, _Kept]]
    step: Step | None
    check: Callable[[], None]

    def restore(self, crossing: Spool) -> int:
        done = 0
        while done < self.count and (not self.parts.parts[done].nodes or self._restored(done)):
            done += 1
        if done < self.count:
            crossed = self.kept.load_crossing(crossing)
            if not 0 < crossed <= done:
                for key in list(crossing.keys()):
                    crossing.drop(key)
                crossed = 0
            done = crossed
        elif self.step is not None:
            self.step(self.count, self.count, len(self.where), len(self.where))
        self.kept.journal.restored += done * len(self.where)
        return done

    def _restored(self, part: int) -> bool:
        """Take over the glimpses of a part that an earlier run has kept; False if it has not."""
        head = self.kept.load_seen(part, self.spool)
        if head is None:
            return False
        for sample, channels in enumerate(head["channels"]):
            self.where[sample][part] = _Kept((sample, part), tuple(head["numbers"]), tuple(channels))
        return True

    def save(self, done: int, keys: Sequence[tuple[int, str]], crossing: Spool) -> None:
        self.check()
        found = [seen[done - 1] for seen in self.where]
        arrays = ((*one.key, name) for one in found for name in (*_ARRAYS, *one.channels))
        channels = [one.channels for one in found]
        self.kept.save_seen(done - 1, arrays, self.spool, numbers=found[0].numbers, channels=channels)
        if done < self.count:
            self.kept.save_crossing(done, keys, crossing)
        else:
            self.kept.end()


def _joined(found: Sequence[_Reduced], count: int) -> Glimpse:
    """One glimpse of all tensors in the order of their numbers. Tensors that no part has seen count as empty."""
    sizes, picked, rows = (np.zeros(count, np.int64) for _ in range(3))
    picks, bottoms, tops = ([np.zeros(0, np.float32)] * count for _ in range(3))
    absmax: dict[int, NDArray[np.float32]] = {}
    for one in found:
        numbers, seen = list(one.numbers), one.seen
        sizes[numbers], picked[numbers], rows[numbers] = seen.sizes, seen.picked, seen.rows
        for lengths, values, all_of in (
            (seen.picked, seen.picks, picks), (seen.rows, seen.bottoms, bottoms), (seen.rows, seen.tops, tops),
        ):  # fmt: skip
            for number, part in zip(numbers, np.split(values, np.cumsum(lengths)[:-1]), strict=False):
                all_of[number] = part
        absmax |= {numbers[i]: values for i, values in seen.absmax.items()}
    first, second, third = (np.concatenate([np.zeros(0, np.float32), *values]) for values in (picks, bottoms, tops))
    return Glimpse(sizes, picked, rows, first, second, third, dict(sorted(absmax.items())))
