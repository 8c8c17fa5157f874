"""Handle signals while the command is still importing: one line on stderr and an exit code, as `signals` does later.

Importing this module sets the handlers if the process is the `onnxshot` command. A program that imports the package as
a library keeps its own handlers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import PurePath
from types import FrameType
from typing import Any

_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK", "SIGINT")  # SIGBREAK: Ctrl-Break of Windows
_COMMAND = "onnxshot"


def _end(number: int, _: FrameType | None) -> None:
    """End the process at once. No work has begun, and an exception would surface inside a library's import."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    try:
        os.write(2, f"error: {how}; nothing is half written\n".encode())
    finally:
        os._exit(128 + number)


HANDLER: Any = _end
"""The handler, which `signals.listen` replaces."""


def is_command() -> bool:
    """True if this process is `onnxshot ...` or `python -m onnxshot ...` itself, not a worker process of it."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        return False
    first = sys.argv[0] if sys.argv else ""
    path = PurePath(first)
    return path.stem == _COMMAND or path.parts[-2:] == (_COMMAND, "__main__.py")


def listen_early() -> None:
    """Set the handlers, unless the program has set its own."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, HANDLER)


if is_command():
    listen_early()
