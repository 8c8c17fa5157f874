"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is half made is removed. A second signal ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType

from onnxshot.cli import early_signals

_ONE_SECONDS = 0.5  # signals that come so close are one: a terminal that is closed sends SIGHUP twice
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")


class Stopped(BaseException):
    """The process was told to end; like KeyboardInterrupt, no handler of errors takes it for one.

    exit_code: 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; nothing is half written")
        self.exit_code = 128 + number


def listen() -> None:
    """From now on raise Stopped in the main thread at SIGTERM and SIGHUP, KeyboardInterrupt at SIGINT.

    A signal that is ignored, as under nohup, stays so. The second signal ends the process even where the main thread is
    in the middle of a run of a model, which hears nothing until that is over.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    ours = {signal.SIG_DFL, signal.default_int_handler, early_signals.HANDLER}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in ours:
            signal.signal(number, _stop)
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_at_second, args=(heard, told), daemon=True).start()


def _stop(number: int, _: FrameType | None) -> None:
    if _told:
        return  # what is removed now is removed to its end
    _told.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


_told: list[int] = []


def _leave_at_second(heard: socket.socket, _: socket.socket) -> None:
    """The system writes the number of each signal into the socket as it comes. The other end is held open here."""
    first = 0.0
    while numbers := heard.recv(16):
        if first and time.monotonic() - first > _ONE_SECONDS:
            os._exit(128 + numbers[-1])
        first = first or time.monotonic()
