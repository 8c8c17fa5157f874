"""Handle signals while the command is still importing: one line on stderr and an exit code, as `signals` does later.

Importing this module sets the handlers if the process is the `onnxshot` command. A program that imports the package as
a library keeps its own handlers. The package imports it first, and it imports only what Python has imported itself, as
a signal before it shows Python's traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing takes longer than all of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK", "SIGINT")  # SIGBREAK: Ctrl-Break of Windows
_COMMAND = "onnxshot"
_JSON = '{"schema_version": 1, "error": {"code": %d, "kind": "%s", "message": "%s", "hint": ""}}\n'
"""What `failures.Failure.end` prints with --json; importing json takes time."""
out = 1
"""The descriptor of stdout, which `streams.prepare` moves with --json."""


def _end(number: int, _: FrameType | None) -> None:
    """End the process at once. No work has begun, and an exception would surface inside a library's import."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    message = f"{how}; nothing is half written"
    try:
        os.write(2, f"error: {message}\n".encode())
        if "--json" in sys.argv:
            kind = "Interrupted" if number == signal.SIGINT else "Stopped"
            os.write(out, (_JSON % (128 + number, kind, message)).encode())
    finally:
        os._exit(128 + number)


HANDLER: Any = _end
"""The handler, which `signals.listen` replaces."""


def is_command() -> bool:
    """True if this process is `onnxshot ...` or `python -m onnxshot ...` itself, not a worker process of it."""
    processes = sys.modules.get("multiprocessing.process")
    parent = getattr(processes, "parent_process", None)  # None while the module is being imported
    if parent is not None and parent() is not None:
        return False
    first = sys.argv[0] if sys.argv else ""
    if first == "-m":  # Python has not found the module yet, whose file will stand here
        given = sys.orig_argv
        return "-m" in given and given[given.index("-m") + 1 :][:1] == [_COMMAND]
    folder, name = os.path.split(first)
    return name.partition(".")[0] == _COMMAND or (name == "__main__.py" and os.path.split(folder)[1] == _COMMAND)


def listen_early() -> None:
    """Set the handlers, unless the program has set its own. Only the main thread can."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            try:  # importing contextlib takes time
                signal.signal(number, HANDLER)
            except ValueError:
                return


if is_command():
    listen_early()
