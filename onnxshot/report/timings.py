"""How stages that know no report have their time measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

Timed = Callable[[str], AbstractContextManager[None]]
"""Takes the name of a stage and returns a context manager that measures its block, such as `Report.timed`."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """Measure nothing."""
    return contextlib.nullcontext()
