"""The memory budget of a run, and the sizes that follow from it.

The budget holds for everything that a `with limited(...)` block does, in the threads of `execution.parallel` too. All
sizes above which work is done in parts, is spilled to disk or is left out are shares of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

MOST = 8 << 30
"""Largest default budget in bytes."""
LEAST = 256 << 20
"""Smallest budget in bytes: Python, its libraries and one part of a small model need no less."""

_SHARE_OF_FREE = 4
_PART = 32  # a part's weights exist up to three times: mapped, packed, and of a second model beside the first
_HELD = 16  # arrays that cross parts, of all samples

_chosen: ContextVar[int | None] = ContextVar("memory budget", default=None)


def budget() -> int:
    """Bytes of memory that the current run may use: what `limited` set, else the default."""
    chosen = _chosen.get()
    return default_budget() if chosen is None else chosen


def default_budget() -> int:
    """A quarter of the machine's free memory in bytes, within LEAST and MOST."""
    return min(max(free_bytes() // _SHARE_OF_FREE, LEAST), MOST)


@contextlib.contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Set the budget within the block, in bytes. None computes the default once, so that it stays the same."""
    token = _chosen.set(budget() if most is None else max(most, LEAST))
    try:
        yield
    finally:
        _chosen.reset(token)


def part_bytes() -> int:
    """Most bytes of weights of a part of a model that runs on its own; a model with fewer runs as a whole."""
    return budget() // _PART


def held_bytes() -> int:
    """Most bytes of arrays that wait in memory between parts; more are spilled to a temporary file."""
    return budget() // _HELD


def free_bytes() -> int:
    """Bytes of memory that new work can take: what the system has available, within the limit of its control group."""
    return min(_available(), _left_in_group())


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
    return MOST * _SHARE_OF_FREE  # no such file outside Linux


def _left_in_group() -> int:
    """What the control group of a container leaves; unlimited where there is none."""
    with contextlib.suppress(OSError, ValueError):
        most = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        return max(int(most) - int(used), 0)
    return MOST * _SHARE_OF_FREE
