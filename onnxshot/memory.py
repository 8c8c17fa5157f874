"""The memory budget of a run, and the sizes that follow from it.

The budget holds for everything that a `with limited(...)` block does, in the threads of `runtimes.parallel` too. All
sizes above which work is done in parts, is spilled to disk or is left out are shares of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from onnxshot import system
from onnxshot.errors import UsageError

MOST = 8 << 30
"""Largest default budget in bytes."""
LEAST = 256 << 20
"""Smallest budget in bytes: Python, its libraries and one part of a small model need no less."""

_SHARE_OF_FREE = 4
_LARGEST_PART = 128 << 20  # bytes
_PART = 32  # a part's weights exist up to three times: mapped, packed, and of a second model beside the first
_HELD = 16  # arrays that cross parts, of all samples
_WAITING = 8  # of `held_bytes`: a file that is written and read soon costs little more time than memory

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(B|iB)?|B)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

_GROUP = Path("/sys/fs/cgroup")
_VERSION_1 = {"memory.max": "memory.limit_in_bytes", "memory.current": "memory.usage_in_bytes"}

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
_HEAPS = 2  # the main one, and one for threads that find it locked

_trim: Callable[[int], int] | None = None
_chosen: ContextVar[int | None] = ContextVar("memory budget", default=None)


def parsed(size: int | str | None) -> int | None:
    """Convert a budget that a user gave to bytes.

    Args:
        size: bytes, or text such as "4G", "512M", "1.5GiB" or "4GB". K, M, G and T are powers of 1024, alone and before
            iB; before B they are powers of 1000. None stands for the default budget.

    Raises:
        UsageError: the text is no size, or less than LEAST.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(str(size).strip())
    if found is None:
        raise UsageError(f"memory is {str(size)[:40]!r}", "a size such as 4G, 512M or 1.5GiB, or a number of bytes")
    number, unit, suffix = found.groups(default="")
    given = int(float(number) * (1000 if suffix.upper() == "B" else 1024) ** _POWERS[unit.upper()])
    if given < LEAST:
        why = "Python, its libraries and one part of a model need that much"
        raise UsageError(f"memory is {size}, less than {told(LEAST)}", f"give {told(LEAST)} or more: {why}")
    return given


def told(size: int) -> str:
    """A number of bytes as text that `parsed` reads, such as 1.5G."""
    power = 3 if size >= 1 << 30 else 2
    return f"{size / 1024**power:.3g}{'MG'[power - 2]}"


def budget() -> int:
    """Bytes of memory that the current run may use: what `limited` set, else the default."""
    chosen = _chosen.get()
    return default_budget() if chosen is None else chosen


def default_budget() -> int:
    """A quarter of the machine's free memory in bytes, within LEAST and MOST."""
    return min(max(free_bytes() // _SHARE_OF_FREE, LEAST), MOST)


@contextlib.contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Set the budget within the block, in bytes. None computes the default once, so that it stays the same.

    Raises:
        UsageError: the budget is larger than the memory of the machine.
    """
    if most is not None and most > (whole := machine_bytes()):
        said = f"memory is {told(most)}, and this machine has {told(whole)}"
        raise UsageError(said, "give less; sizes that follow from the budget would not fit")
    token = _chosen.set(budget() if most is None else max(most, LEAST))
    try:
        yield
    finally:
        _chosen.reset(token)


def part_bytes() -> int:
    """Most bytes of weights of a part of a model that runs on its own; a model with fewer runs as a whole.

    Where a model is cut decides the last bits of what it computes. The same limit for every budget above 4 GiB makes
    runs reproducible although the default budget follows the memory that is free.
    """
    return min(budget() // _PART, _LARGEST_PART)


def held_bytes() -> int:
    """Most bytes of arrays that wait in memory between parts; more are spilled to a temporary file."""
    return budget() // _HELD


def waiting_bytes() -> int:
    """Most bytes of arrays of a layer walk or a search that wait in memory; more are spilled to a temporary file."""
    return held_bytes() // _WAITING


def release() -> None:
    """Give freed memory back to the system, where the C library is glibc, which otherwise keeps it."""
    global _trim
    if _trim is None:
        _trim = getattr(system.c_library(), "malloc_trim", int)  # without glibc, nothing
    _trim(0)


def share_heaps() -> None:
    """Let all threads allocate from a few heaps, where the C library is glibc.

    Else each thread gets a heap of its own, which keeps what the thread has freed. It holds for the whole process.
    """
    with contextlib.suppress(AttributeError):  # no glibc
        system.c_library().mallopt(_ARENA_MAX, _HEAPS)


def free_bytes() -> int:
    """Bytes of memory that new work can take: what the system has available, within the limit of its control group."""
    return min(_available(), _left_in_group())


def machine_bytes() -> int:
    """Bytes of memory of the machine, or of the control group if that is less; no limit where neither is known."""
    known = (_field("MemTotal") or system.physical_bytes(), _of_group("memory.max"))
    return min((size for size in known if size is not None), default=1 << 62)


def _available() -> int:
    found = _field("MemAvailable")
    found = system.available_bytes() if found is None else found
    return MOST * _SHARE_OF_FREE if found is None else found


def _field(name: str) -> int | None:
    """A size that the kernel reports, in bytes; None outside Linux."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) << 10
    return None


def _left_in_group() -> int:
    """What the control group of a container leaves, without the files it caches; unlimited where there is none."""
    most, used = _of_group("memory.max"), _of_group("memory.current")
    return MOST * _SHARE_OF_FREE if most is None or used is None else max(most - used + _cached_in_group(), 0)


def _of_group(name: str) -> int | None:
    """A size of the control group in bytes; None where there is no group, or no limit."""
    for path in (_GROUP / name, _GROUP / "memory" / _VERSION_1[name]):
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text(encoding="ascii").strip())
    return None


def _cached_in_group() -> int:
    """Bytes of cached files, which the group counts as used and the kernel gives back when they are needed."""
    for path, name in (("memory.stat", "inactive_file"), ("memory/memory.stat", "total_inactive_file")):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = (_GROUP / path).read_text(encoding="ascii").splitlines()
            return int(next(line for line in lines if line.startswith(f"{name} ")).split()[1])
    return 0
