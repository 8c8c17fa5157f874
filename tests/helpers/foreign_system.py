"""Run a command of onnxshot as on Windows: without what its Python lacks, and with its rules for open files.

A process that runs this file takes the command's arguments. Modules and names that only Linux and macOS have are gone,
/proc and /sys do not exist, and a file that is open or mapped can be neither renamed, replaced nor removed. What was
refused for that reason is listed on stderr at the end, one line each, also where the caller ignored it.
"""

import contextlib
import ctypes
import errno
import fcntl
import importlib
import os
import shutil
import signal
import subprocess  # noqa: F401  # so do those that onnxshot imports
import sys
import tempfile  # noqa: F401
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt")
NAMES = (
    "killpg", "getpgid", "setsid", "getuid", "geteuid", "getgid", "getegid", "fork", "forkpty", "sysconf", "statvfs",
    "getloadavg", "uname", "sched_getaffinity", "sched_setaffinity", "pread", "pwrite", "preadv", "pwritev", "fchmod",
    "chown", "fchown", "lchown", "mkfifo", "nice", "sync", "posix_fallocate", "posix_fadvise", "wait3", "wait4",
    "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_SYNC",
)  # fmt: skip
SIGNALS = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "SIGALRM")

_looking = threading.local()


def become_windows() -> None:
    """Take away what Windows has not, and refuse what it refuses."""
    for name in ("numpy", "onnx", "onnx_graphsurgeon", "onnxruntime", "PIL.Image", "yaml", "rich.console"):
        importlib.import_module(name)  # libraries look at sys.platform, and so does the standard library
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    vars(shutil)["_use_fd_functions"] = False  # as there, or rmtree asks for names that are gone
    for name in NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        delattr(signal, name)
    del errno.EDQUOT
    library = ctypes.CDLL
    ctypes.CDLL = lambda name, *args, **kwargs: library(_text(name), *args, **kwargs)  # type: ignore[assignment, misc]
    # GlobalMemoryStatusEx: 16 GiB, of which 8 are free
    told = SimpleNamespace(GlobalMemoryStatusEx=_told)
    ctypes.windll = SimpleNamespace(kernel32=told)  # type: ignore[attr-defined]
    msvcrt: Any = ModuleType("msvcrt")
    msvcrt.LK_LOCK, msvcrt.LK_NBLCK = fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB
    msvcrt.locking = lambda file, mode, size: fcntl.flock(file, mode)
    sys.modules["msvcrt"] = msvcrt
    os.O_BINARY = 0  # type: ignore[attr-defined, unused-ignore]
    sys.addaudithook(_audit)
    from onnxshot import system

    system.WINDOWS = system.CASE_BLIND = True


def _text(name: object) -> Any:
    if not isinstance(name, str | bytes | os.PathLike):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return name


def _told(status: Any) -> int:
    status._obj.physical, status._obj.available = 16 << 30, 8 << 30
    return 1


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if getattr(_looking, "now", False) or event not in ("open", "os.rename", "os.remove", "os.link"):
        return
    if event == "open":
        path = args[0] if isinstance(args[0], str) else ""
        if path.startswith(("/proc/", "/sys/")) and path != "/proc/self/maps":  # threadpoolctl reads it on Linux
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        return
    _looking.now = True
    try:
        held = _open_files()
    finally:
        _looking.now = False
    for path in args[: 1 if event == "os.remove" else 2]:
        with contextlib.suppress(TypeError):
            place = os.path.realpath(os.fsdecode(path))
            if any(one == place or one.startswith(f"{place}/") for one in held) and event != "os.link":
                os.write(2, f"refused: {event} {place}\n".encode())  # also where the caller ignores it
                raise PermissionError(errno.EACCES, "it is used by another process", place)


def _open_files() -> set[str]:
    """The files that this process holds open or has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = {line.split(maxsplit=5)[5].strip() for line in lines if "/" in line}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return found


def main() -> None:
    become_windows()
    from onnxshot.cli.app import entry

    sys.argv[0] = "onnxshot"
    entry()


if __name__ == "__main__":
    main()
