"""Run a model part by part over samples: one part's session exists at a time, and what crosses is kept or spilled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot import memory
from onnxshot.calibration.checks import NamedFeed
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.progress import part_steps
from onnxshot.runtimes.ort_session import Feed
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

Result = TypeVar("Result")
Opened = Callable[[Feed], tuple[Mapping[str, NDArray[Any]], Result]]
"""Runs a part on one sample. Returns the tensors that later parts read, and what the caller wants of the part."""
Open = Callable[[int, LeanModel, Sequence[str]], Opened[Result]]
"""Makes an `Opened` of the number of a part, the part as a model, and the tensors that later parts read."""
Step = Callable[[int, int, int, int], None]
"""Called with the number of the part, of all parts, of the samples that it has run on, and of all samples."""

class Checkpoint(Protocol):
    """Keeps what a walk has found, so that another one goes on there."""

    def restore(self, crossing: Spool) -> int:
        """Put the tensors that cross, by (sample, name), into a spool, and return how many parts need not run."""
        ...

    def save(self, done: int, keys: Sequence[tuple[int, str]], crossing: Spool) -> None:
        """Keep that many parts, and the tensors of these keys, which later parts read."""
        ...


CHUNK = 128
"""Most samples that one pass over the parts takes, if they are drawn from an iterator."""


def walk_parts(
    parts: Parts,
    feeds: Iterable[Feed],
    open_part: Open[Result],
    *,
    workers: int,
    step: Step | None = None,
    count: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[int, int, Result]]:
    """Yield (part, sample, result), part after part, over all samples; for an iterator CHUNK samples at a time.

    Memory: one part, and `memory.held_bytes()` of the tensors that cross; more are spilled to a temporary file.

    Args:
        parts: The parts.
        feeds: Samples; a sequence is taken whole.
        open_part: Makes what runs a part. It is let go before the next part is opened.
        workers: Samples that run at once.
        step: Called after each sample of each part; by default, what is done here is told (see `onnxshot.progress`).
        count: Number of parts to run, from the first one; None for all.
        checkpoint: Says which parts need not run, and is called after each part; for a sequence of samples.

    Raises:
        ModelError: A part does not load, or a sample lacks an input or does not run.
    """
    step = step or part_steps()
    if isinstance(feeds, Sequence):
        if feeds:
            yield from _walk(parts, feeds, open_part, workers, step, count, checkpoint)
        return
    rest, start = iter(feeds), 0
    while chunk := list(islice(rest, CHUNK)):
        for part, sample, result in _walk(parts, chunk, open_part, workers, step, count):
            yield part, start + sample, result
        start += len(chunk)


def _walk(
    parts: Parts,
    feeds: Sequence[Feed],
    open_part: Open[Result],
    workers: int,
    step: Step | None,
    most: int | None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[int, int, Result]]:
    last = {name: number for number, part in enumerate(parts.parts) for name in part.reads}
    count, most = len(feeds), len(parts) if most is None else most
    with Spool() as spool:
        begin = checkpoint.restore(spool) if checkpoint is not None else 0
        for number, part in list(enumerate(parts.parts[:most]))[begin:]:

            def values_of(sample: int, names: Sequence[str] = part.reads) -> Feed:
                feed = feeds[sample]
                found = {}
                for name in names:
                    if (sample, name) in spool:
                        found[name] = spool.get((sample, name))
                    elif name in feed:
                        found[name] = feed[name]
                    else:
                        raise ModelError(f"{parts.label} asks for input {name!r}, which the sample does not hold")
                return NamedFeed(found, feed.sample) if isinstance(feed, NamedFeed) else found

            if not part.nodes:
                continue
            run = open_part(number, parts.model_of(number, part.passes, values_of(0)), part.passes)

            def work(
                sample: int, run: Opened[Result] = run, names: Sequence[str] = part.passes,
                values_of: Callable[[int], Feed] = values_of,
            ) -> Result:  # fmt: skip
                values, result = run(as_declared(values_of(sample), parts.kinds))
                for name in names:
                    spool.put((sample, name), values[name])
                return result

            for done, result in enumerate(in_order(work, range(count), workers)):
                yield number, done, result
                if step is not None:
                    step(number + 1, most, done + 1, count)
            del run, work  # the session, before the next one is created
            memory.release()
            for name in (name for name in part.reads if last[name] == number):
                for sample in range(count):
                    spool.drop((sample, name))
            if checkpoint is not None:
                left = [name for name in last if last[name] > number]
                keys = [(sample, name) for sample in range(count) for name in left if (sample, name) in spool]
                checkpoint.save(number + 1, keys, spool)


def as_declared(feed: Mapping[str, NDArray[Any]], kinds: Mapping[str, int]) -> Feed:
    """The feed with bfloat16 where the model states it; ONNX Runtime's outputs of that type are given as float32."""
    halves = [n for n, v in feed.items() if kinds.get(n) == TensorProto.BFLOAT16 and v.dtype == np.float32]
    if not halves:
        return feed
    return {**feed, **{name: feed[name].astype(ml_dtypes.bfloat16) for name in halves}}
