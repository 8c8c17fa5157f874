"""A command on a pseudo-terminal of its own, as a person runs it: what it printed, and how it ended."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 80


@dataclass(frozen=True)
class Shown:
    """code: as a shell has it; text: all that reached the terminal, escape sequences included."""

    code: int
    text: str


def run(command: list[str], folder: Path, env: dict[str, str], *, until: str = "", seconds: float = 120) -> Shown:
    """Run a command whose terminal is COLUMNS wide; press Ctrl-C once `until`, where it is given, has been shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    clean = {k: v for k, v in env.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        command, cwd=folder, env={**clean, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )  # fmt: skip
    os.close(theirs)
    told, ends, pressed = b"", time.monotonic() + seconds, False
    try:
        while time.monotonic() < ends:
            ready, _, _ = select.select([ours], [], [], 0.2)
            if ready:
                try:
                    some = os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
                if not some:
                    break
                told += some
            if until and not pressed and until.encode() in told:
                os.write(ours, b"\x03")
                pressed = True
        else:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command} has not ended in {seconds} s: {told.decode(errors='replace')}")
        code = process.wait()
    finally:
        os.close(ours)
    return Shown(code if code >= 0 else 128 - code, told.decode())
