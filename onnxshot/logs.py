"""The loggers of the package: `logging.getLogger("onnxshot")` and below. The package logs, and never sets up logging.

- `onnxshot.stages`: a stage has started (DEBUG), or ended, with its seconds (INFO; DEBUG if short or within another).
- `onnxshot.runs`: a verb has started (DEBUG), or ended, with its seconds (INFO); a cell of a batch has ended (INFO).
- `onnxshot.notes`: the notes of a report (INFO), and what its verdict holds against the result (WARNING).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

PACKAGE = logging.getLogger("onnxshot")
PACKAGE.addHandler(logging.NullHandler())  # without it, Python prints warnings of a program that set up no logging
STAGES, RUNS, NOTES = (PACKAGE.getChild(name) for name in ("stages", "runs", "notes"))

_SHORT = 0.01  # seconds of a stage that is worth a line
_inner: ContextVar[bool] = ContextVar("inner", default=False)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log the start and the end of a stage, which is the block."""
    within, token, started = _inner.get(), _inner.set(True), time.perf_counter()
    STAGES.debug("%s: started", name)
    try:
        yield
    finally:
        _inner.reset(token)
    seconds = time.perf_counter() - started
    STAGES.log(logging.DEBUG if within or seconds < _SHORT else logging.INFO, "%s: %.2f s", name, seconds)


@contextmanager
def run(verb: str) -> Iterator[None]:
    """Log the start and the end of a verb, which is the block."""
    started = time.perf_counter()
    RUNS.debug("%s: started", verb)
    yield
    RUNS.info("%s: %.2f s", verb, time.perf_counter() - started)


def tell(result: Any) -> None:
    """Log the notes and the verdict of what a verb returns, where it has some and anyone listens."""
    if not _heard():
        return
    report = getattr(result, "report", result)
    for note in getattr(report, "notes", ()):
        NOTES.info("%s", note)
    for reason in getattr(getattr(report, "verdict", None), "reasons", ()):  # the verdict is computed here
        NOTES.warning("%s", reason)


def _heard() -> bool:
    """Whether a handler would get what is logged."""
    handlers = [*PACKAGE.handlers, *NOTES.handlers, *(logging.getLogger().handlers if PACKAGE.propagate else ())]
    return any(not isinstance(handler, logging.NullHandler) for handler in handlers)
