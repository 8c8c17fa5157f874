"""What differs between Linux, macOS and Windows: locks, process groups, memory, names of files.

Nothing else in the package asks for the operating system's own modules. Each function works without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

WINDOWS = os.name == "nt"
"""Whether open files can be neither renamed nor removed, and processes have no groups."""
CASE_BLIND = sys.platform in ("win32", "cygwin", "darwin")
"""Whether two names that differ in case are one file, as on the file systems that these systems make by default."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `os.open`: refuse a symbolic link. 0 where the system cannot."""
BINARY = getattr(os, "O_BINARY", 0)
"""Flag of `os.open`: no translation of line ends, which only Windows does."""

_LOCKED_AT = 1 << 30  # the byte that is locked on Windows: nobody could read a locked one
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*|:.*)?", re.IGNORECASE)


def c_library() -> Any:
    """The C library of the process; None where it cannot be reached, as on Windows."""
    with contextlib.suppress(OSError, TypeError):
        return ctypes.CDLL(None, use_errno=True)
    return None


# ---------------------------------------------------------------------- files


def lock(file: int, *, wait: bool = False) -> bool | None:
    """Lock an open file, or on Linux and macOS a folder, until it is closed.

    Args:
        file: its descriptor; where it reads and writes is unchanged.
        wait: whether to wait for another process that holds the lock.

    Returns:
        True if this process holds the lock now, False if another does, None where there are no locks.
    """
    with contextlib.suppress(ImportError):
        fcntl = import_module("fcntl")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return None
    with contextlib.suppress(ImportError):
        msvcrt = import_module("msvcrt")
        place = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, _LOCKED_AT, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            return True
        except OSError:
            return False
        finally:
            os.lseek(file, place, os.SEEK_SET)
    return None


def folded(path: PurePath | str) -> str:
    """A path as text that is equal for two spellings of one file: without case where names have none."""
    return str(path).casefold() if CASE_BLIND else str(path)


def is_reserved(name: str) -> bool:
    """Whether Windows takes the name of a file for a device, such as `nul.onnx`, or cuts off its end."""
    return WINDOWS and (_RESERVED.fullmatch(name) is not None or name.endswith((" ", ".")))


# ---------------------------------------------------------------------- processes


def end_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started with `start_new_session=True`, and all processes that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its process group may outlive it
    elif process.poll() is None:
        _end_by_command(process.pid)
    process.kill()  # no effect if it has ended


def end_own_tree() -> None:
    """Kill this process, which leads a session of its own, and all processes that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    _end_by_command(os.getpid())
    os._exit(1)


def _end_by_command(pid: int) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip


# ---------------------------------------------------------------------- memory


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("physical", ctypes.c_uint64),
        ("available", ctypes.c_uint64), ("others", ctypes.c_uint64 * 5),
    )  # fmt: skip


def physical_bytes() -> int | None:
    """Bytes of memory of the machine; None where the system does not tell."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = _windows_memory()
    return found.physical if found is not None else None


def available_bytes() -> int | None:
    """Bytes of memory that are free, as far as the system tells; half of the memory where it tells only that."""
    found = _windows_memory()
    if found is not None:
        return int(found.available)
    known = physical_bytes()
    return None if known is None else known // 2


def _windows_memory() -> Any:
    kernel = getattr(getattr(ctypes, "windll", None), "kernel32", None)
    if kernel is None:
        return None
    found = _Status(length=ctypes.sizeof(_Status))
    return found if kernel.GlobalMemoryStatusEx(ctypes.byref(found)) else None


def resident_bytes(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended, and on systems without /proc."""
    with contextlib.suppress(OSError, IndexError, ValueError, AttributeError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:
        resource = import_module("resource")
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
