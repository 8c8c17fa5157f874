"""Run commands as whole processes: CPU and wall seconds, peak memory. Knows nothing of onnxshot."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

AS_INSTALLED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""With that set, Python would compile packages anew in every process; pip leaves them compiled."""
POLL = 0.01  # seconds


@dataclass(frozen=True)
class Cost:
    """What a process and those it started took. `peak` and `private` are MB."""

    cpu: float
    wall: float
    peak: float
    private: float
    output: str


def cost(command: Sequence[str]) -> Cost:
    """Run a command to its end.

    `peak` is the largest resident memory, pages of mapped files included, `private` the largest without those, as a
    poll sees it. For the system's own count, a process has at least the memory of whoever started it; /proc counts
    anew from when it becomes another program.

    Raises:
        SystemExit: the command failed; the message ends with what it wrote.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(list(command), stdout=out, stderr=err, env=AS_INSTALLED)
        peak = private = 0
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            seen = [memory(pid) for pid in family(process.pid)]
            peak = max(peak, sum(now for now, _, _ in seen), seen[0][1] if seen else 0)
            private = max(private, sum(alone for _, _, alone in seen))
            time.sleep(POLL)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            said = (err.read().strip() or out.read().strip())[-2000:]
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said}")
        return Cost(used.ru_utime + used.ru_stime, wall, peak / 1e6, private / 1e6, out.read())


def in_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Cost]]:
    """The cost of every command in every round; all run once a round."""
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(cost(command))
    return found


def ratio(rows: Sequence[Cost], base: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    """Median over the rounds of one command's cost over another's."""
    return statistics.median(of(a) / of(b) for a, b in zip(rows, base, strict=True))


def memory(pid: int) -> tuple[int, int, int]:
    """Bytes that a process has resident, has had at most, and has for itself; zeros where it has ended."""
    with suppress(OSError, ValueError):
        rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        now, most, alone = (int(rows[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM", "RssAnon") if name in rows)
        return now, most, alone
    return 0, 0, 0


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                with suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found
