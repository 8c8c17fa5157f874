"""Tell how far long work is: which step, which part of a large model, which sample, and about how long it will take.

A verb sets the callback with `telling`, and stages name themselves with `doing`, which `following` hears. What runs a
model part by part reports through `part_steps`, and need not know either of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, Token

from onnxshot import logs

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the number of items done, and the number of all items.

The name may go on after a comma with what is being done in the step, and then changes from call to call.
"""

_NAMES = {
    "allocate": "measuring layers", "balance": "balancing columns", "bench": "timing", "calibrate": "calibrating",
    "choose forms": "choosing forms", "cut": "cutting channels", "decode": "comparing decoded text",
    "equalize": "equalizing", "everywhere": "checking other runtimes", "fit": "fitting layers",
    "grid": "trying grids", "half": "looking at ranges", "keep finite": "checking outputs",
    "look": "looking at groups of nodes", "mend": "mending", "normalize": "checking the normalized model",
    "place": "placing operators", "prune": "pruning", "refine": "refining", "repair": "repairing",
    "rewrite": "rewriting", "round weights": "rounding weights", "search": "trying other mixes",
    "smooth": "smoothing", "time layers": "timing layers", "try": "trying candidates", "try LSTMs": "trying LSTMs",
    "verify": "comparing", "weigh": "weighing channels",
}  # fmt: skip
"""What stages are called while they run."""
QUANTIZING = (
    ("normalize", "choose forms", "balance", "try LSTMs"),
    ("calibrate",),
    ("place", "equalize", "try", "look", "refine", "smooth", "grid", "half", "allocate", "round weights"),
    ("rewrite", "repair", "mend"),
    ("verify", "decode", "everywhere"),
    ("bench",),
    ("search",),
)
"""The stages of a quantization in the order in which they first run; those of one row count as one.

Some run in every quantization and others where they apply, so a run may pass over a row, and it ends before the last
one where nothing is left to search for. A stage that runs again, or within another, is no step back.
"""
PRUNING = (
    ("normalize",),
    ("weigh", "allocate", "time layers"),
    ("prune", "cut", "fit"),
    ("keep finite", "verify"),
    ("bench",),
)
"""The same of prune."""
_SECONDS_KNOWN = 2.0  # of work, before what is left is estimated
_MINUTE, _HOUR = 60, 3600

_told: ContextVar[Progress | None] = ContextVar("progress", default=None)
_step: ContextVar[str] = ContextVar("step", default="running")
_follower: ContextVar[Callable[[str | None], None] | None] = ContextVar("follower", default=None)


@contextlib.contextmanager
def telling(progress: Progress | None) -> Iterator[None]:
    """Report what the block does to this callback; with None, report nothing."""
    token = _told.set(progress)
    try:
        yield
    finally:
        _told.reset(token)


@contextlib.contextmanager
def doing(stage: str) -> Iterator[None]:
    """Name what the block does, after the stage in a report's `timings`."""
    token, follower = _step.set(_NAMES.get(stage, stage)), _follower.get()
    if follower is not None:
        follower(_step.get())
    try:
        with logs.stage(stage):
            yield
    finally:
        _step.reset(token)
        if follower is not None:
            follower(_step.get() if token.old_value is not Token.MISSING else None)


@contextlib.contextmanager
def following(follower: Callable[[str | None], None]) -> Iterator[None]:
    """Call this function with the name of each stage of the block: as it starts, and with the outer one's as it ends.

    Outside all stages the name is None. Stages of other threads are not heard.
    """
    token = _follower.set(follower)
    try:
        yield
    finally:
        _follower.reset(token)


class Place:
    """Where in its stages a run is.

    Args:
        stages: rows of stages, such as QUANTIZING; empty if they are not known.
    """

    def __init__(self, stages: Sequence[Sequence[str]] = ()) -> None:
        self._total, self._now = len(stages), 0
        self._rows = {_NAMES[stage]: number for number, row in enumerate(stages, 1) for stage in row}

    def enter(self, stage: str) -> None:
        """A stage has begun, by the name that `following` tells."""
        self._now = max(self._now, self._rows.get(stage, 0))

    def __str__(self) -> str:
        """Such as "3/7"; empty if the stages are not known."""
        return f"{max(self._now, 1)}/{self._total}" if self._total else ""


class PartSteps:
    """Reports a walk over the parts of a model, as "STEP, part 3 of 12, sample 5 of 32, about 4 min left".

    The numbers of the callback count samples in parts: 12 parts of 32 samples are 384 items.

    Args:
        progress: The callback.
        step: Name of the step.
        stops: Numbers of samples after which the whole may end, in ascending order; by default after the samples of
            each walk.
    """

    def __init__(self, progress: Progress, step: str, stops: Sequence[int] = ()) -> None:
        self._progress, self._name, self._stops = progress, step, stops
        self._before = 0  # samples that have been through all parts
        self._begun, self._first = time.monotonic(), -1

    def __call__(self, part: int, parts: int, done: int, samples: int) -> None:
        """Report that a part has run on a sample.

        Args:
            part: Number of the part, from 1.
            parts: Number of parts.
            done: Samples that this part has run on.
            samples: Samples of this walk.
        """
        least = self._before + samples
        whole = next((stop for stop in self._stops if stop >= least), least)
        finished = self._before * parts + (part - 1) * samples + done
        if self._first < 0:
            self._first = finished - 1  # an earlier run may have done some
        more = " or more" if self._stops and whole < self._stops[-1] else ""
        text = f"{self._name}, part {part} of {parts}, sample {self._before + done} of {whole}{more}"
        self._progress(text + self._left(finished, whole * parts), finished, whole * parts)
        if part == parts and done == samples:
            self._before = least

    def _left(self, finished: int, items: int) -> str:
        taken, new = time.monotonic() - self._begun, finished - self._first
        if taken < _SECONDS_KNOWN or finished == items:
            return ""
        return f", about {duration(taken / new * (items - finished))} left"


def part_steps() -> PartSteps | None:
    """What reports a walk over the parts of a model; None where nobody listens."""
    progress = _told.get()
    return None if progress is None else PartSteps(progress, _step.get())


def duration(seconds: float) -> str:
    """A time in words, such as "4 min"."""
    if seconds < _MINUTE:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / _MINUTE)} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"
