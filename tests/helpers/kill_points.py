"""Kill a process at a chosen one of all the moments at which it changes a file: before each rename, link, removal, new
file or folder, and in the middle of each write."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxshot.files import atomic_write

_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TOLD = 77  # exit code
_REST = ("/dev/", "/proc/")


class ToldToEnd(BaseException):
    """What a signal raises."""


class _Moments:
    """Counts down to the moment at which this process is killed."""

    def __init__(self, at: int, told: bool) -> None:
        self.left, self.told = at, told

    def pass_one(self, half: Callable[[], object] = lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            half()
            if self.told:
                raise ToldToEnd
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & _WRITES or not isinstance(path, str | bytes):
                return
            name = os.fsdecode(path)
            if name.startswith(_REST) or "__pycache__" in name:
                return
        elif event not in _EVENTS:
            return
        self.pass_one()


def _install(at: int, told: bool) -> None:
    moments = _Moments(at, told)

    class Torn(io.FileIO):
        def write(self, data: Any) -> int:
            half = memoryview(data)[: len(memoryview(data)) // 2]
            moments.pass_one(lambda: io.FileIO.write(self, half))
            return super().write(data)

    real_open, real_exchange = io.open, atomic_write.exchange

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if isinstance(file, int) or not set(mode) & set("wxa+"):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Torn(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        made = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return made if "b" in mode else io.TextIOWrapper(made, encoding, errors, newline)

    def exchange(one: Path, other: Path) -> None:
        moments.pass_one()
        real_exchange(one, other)

    io.open = builtins.open = opened  # type: ignore[assignment]
    atomic_write.exchange = exchange
    sys.addaudithook(moments.hear)


def run(work: Callable[[], object], at: int = 0, *, told: bool = False) -> bool:
    """Do the work in a fork of this process; whether it was killed, at the given moment of all. 0: let it be.

    told: it is told to end instead, by an exception.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            if at:
                _install(at, told)
            work()
        except ToldToEnd:
            code = _TOLD
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and at:
        return True
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _TOLD:
        return True
    assert status == 0, "the work fails undisturbed"
    return False


def every_moment(
    work: Callable[[], object], before: Path, place: Path, step: int = 1, *, told: bool = False
) -> Iterator[int]:
    """Do the work again and again in a copy of the folder `before` at `place`, killed at each moment in turn.

    Yields the number of the moment after each kill, with the folder as the killed process has left it.
    """
    at = 1
    while True:
        anew(before, place)
        if not run(work, at, told=told):
            return
        yield at
        at += step


def anew(before: Path, place: Path) -> None:
    """Make the folder what it was."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place, symlinks=True)


def contents(folder: Path, *, apart: Callable[[Path], bool] = lambda _: False) -> dict[str, bytes]:
    """All files below a folder; of those that are `apart` the names alone."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): b"" if apart(p) else p.read_bytes() for p in files}
