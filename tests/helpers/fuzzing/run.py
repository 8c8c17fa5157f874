"""Try mutants in a pool of processes, each step with a limit of time and memory, and count what came of them."""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60.0  # of CPU, for a step
_RUNTIME = 15.0  # for ONNX Runtime alone: what it does not run by then counts as what it does not run
_PATIENCE = 4  # times as long on the clock, on a machine that does other things too

Job = tuple[str, str, int]


@dataclass(frozen=True)
class Tried:
    """What came of one mutant: step -> (outcome, words)."""

    job: Job
    steps: dict[str, tuple[str, str]]

    @property
    def faults(self) -> dict[str, str]:
        """Step -> what is wrong."""
        return {step: words for step, (outcome, words) in self.steps.items() if outcome == "fault"}


@dataclass
class Worker:
    """One process, started anew where it went down."""

    folder: Path | None = None
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _step: str = field(default="", init=False)
    _seed: str = field(default="", init=False)
    _read: bytes = field(default=b"", init=False)

    def try_(self, job: Job) -> Tried:
        """All steps of a mutant; those that bring the process down are faults, and the others go on without them."""
        lost: dict[str, tuple[str, str]] = {}
        while True:
            answer = self._ask([str(self.folder) if self.folder else None, *job, list(lost)])
            if answer is not None:
                steps = {name: (str(found[0]), str(found[1])) for name, found in answer.items()}
                return Tried((self._seed, *job[1:]), {**steps, **lost})
            how = self._end()
            lost[self._step] = ("fault" if self._step != "runtime" else "crashes", how)
            if self._step in ("make", "") or len(lost) > 6:
                return Tried(job, lost)

    def _ask(self, line: list[object]) -> dict[str, list[str]] | None:
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        self._step = ""
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        while True:
            answer = self._line(process)
            if answer is None:
                return None
            if answer[0] == "end":
                return dict(answer[1])
            self._step = answer[1]
            if self._step.startswith("make of "):
                self._seed, self._step = self._step.removeprefix("make of "), "make"

    def _line(self, process: "subprocess.Popen[bytes]") -> list[object] | None:  # type: ignore[type-arg]
        assert process.stdout is not None
        begun, before = time.monotonic(), _cpu(process.pid)
        while True:
            text, found, rest = self._read.partition(b"\n")
            if found:
                self._read = rest
                return list(json.loads(text))
            ready, _, _ = select.select([process.stdout], [], [], 2)
            if ready:
                more = os.read(process.stdout.fileno(), 1 << 16)
                if not more:
                    return None
                self._read += more
            limit = _RUNTIME if self._step == "runtime" else SECONDS
            if _cpu(process.pid) - before > limit or time.monotonic() - begun > limit * _PATIENCE:
                return None

    def _end(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(0.5)
            how = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            how = f"it took more than {SECONDS:.0f} s"
        self.close()
        return how

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process, self._read = None, b""


def _started() -> "subprocess.Popen[bytes]":
    script = Path(__file__).with_name("worker.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b'["ready"]\n'
    return process


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / 100


def tried(jobs: Iterable[Job], folder: Path | None = None, processes: int = 1) -> Iterator[Tried]:
    """What came of every mutant, as they are done."""
    if processes == 1:
        with contextlib.closing(Worker(folder)) as worker:
            yield from map(worker.try_, jobs)
        return
    local = threading.local()
    workers: list[Worker] = []

    def one(job: Job) -> Tried:
        if not hasattr(local, "worker"):
            local.worker = Worker(folder)
            workers.append(local.worker)
        return local.worker.try_(job)

    with ThreadPoolExecutor(processes) as pool:
        try:
            yield from pool.map(one, jobs)
        finally:
            for worker in workers:
                worker.close()


def table(found: list[Tried]) -> str:
    """Counts, and the faults."""
    counts: Counter[tuple[str, str]] = Counter((step, outcome) for t in found for step, (outcome, _) in t.steps.items())
    lines = [f"{len(found)} mutants, {sum(bool(one.faults) for one in found)} with faults"]
    lines += [f"{step:18} {outcome:10} {count:5}" for (step, outcome), count in sorted(counts.items())]
    for one in found:
        lines += [f"{one.job}: {step}: {words}" for step, words in one.faults.items()]
    return "\n".join(lines)


def main() -> None:
    """From the command line."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from fuzzing import attributes, inner, values, wiring  # noqa: F401
    from fuzzing.core import MUTATIONS
    from fuzzing.seeds import numbered, seeds

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", nargs="*")
    parser.add_argument("--mutation", nargs="*")
    asked = parser.parse_args()
    names = asked.seed or list(seeds(asked.folder))
    jobs = numbered(asked.first + asked.count, names, asked.mutation or list(MUTATIONS))[asked.first :]
    found, end = [], time.monotonic() + asked.seconds
    for one in tried(jobs, asked.folder, asked.processes):
        found.append(one)
        for step, words in one.faults.items():
            print(f"FAULT {one.job}: {step}: {words}", flush=True)
        if time.monotonic() > end:
            break
    print(table(found))


if __name__ == "__main__":
    main()
