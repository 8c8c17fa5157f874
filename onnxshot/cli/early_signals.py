"""Signals while the command is still importing: one line and the exit code, as later on.

The imports take the better part of a second. Handlers are set by the first import of the command line where it is the
command that runs; whoever imports the package as a library keeps their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import PurePath
from types import FrameType
from typing import Any

_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
_COMMAND = "onnxshot"


def _end(number: int, _: FrameType | None) -> None:
    """Leave at once: nothing is begun, and an exception would come out of the middle of some library's import."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    try:
        os.write(2, f"error: {how}; nothing is half written\n".encode())
    finally:
        os._exit(128 + number)


HANDLER: Any = _end
"""What `signals.listen` replaces."""


def is_command() -> bool:
    """Whether this process is `onnxshot ...` or `python -m onnxshot ...`, and none that such a one has started."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        return False
    first = sys.argv[0] if sys.argv else ""
    path = PurePath(first)
    return path.stem == _COMMAND or path.parts[-2:] == (_COMMAND, "__main__.py")


def listen_early() -> None:
    """Set the handlers, where the signals have those of the system or of Python still."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, HANDLER)


if is_command():
    listen_early()
