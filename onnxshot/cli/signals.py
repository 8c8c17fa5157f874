"""Signals: SIGTERM and SIGHUP end a command as Ctrl-C does: unfinished files are removed. A second ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType

from onnxshot import early_signals
from onnxshot.cli import terminal

_ONE_SECONDS = 0.5  # signals this close count as one: a terminal that is closed sends SIGHUP twice
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK", "SIGINT")  # SIGBREAK: Ctrl-Break of Windows


class Stopped(BaseException):
    """The process received SIGTERM or SIGHUP. It is no Exception, so that no error handler catches it.

    exit_code: 128 + the number of the signal, as shells use.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; nothing is half written")
        self.exit_code = 128 + number


def listen() -> None:
    """Raise Stopped in the main thread at SIGTERM and SIGHUP, and KeyboardInterrupt at SIGINT, from now on.

    A signal that is ignored, as under nohup, stays ignored. A second signal ends the process at once, even while the
    main thread runs a model in native code and cannot raise.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_at_second, args=(reader, writer), daemon=True).start()
    ours = {signal.SIG_DFL, signal.default_int_handler, early_signals.HANDLER}
    for name in _SIGNALS:  # last, as a handler that raises must not interrupt the start of the thread
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in ours:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    if _received:
        return  # let the cleanup of the first signal finish
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


_received: list[int] = []


def received() -> int | None:
    """The number of the first signal since `listen`; None if there was none."""
    return _received[0] if _received else None


def _leave_at_second(reader: socket.socket, _: socket.socket) -> None:
    """End the process at the second signal. Python writes the number of each signal into the socket, kept open here."""
    first = 0.0
    while numbers := reader.recv(16):
        if first and time.monotonic() - first > _ONE_SECONDS:
            terminal.wipe()
            os._exit(128 + numbers[-1])
        first = first or time.monotonic()
