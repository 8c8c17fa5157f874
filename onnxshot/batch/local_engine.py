"""Cells on this machine: a few worker processes within a bound of memory, and nothing that one does harms another."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from onnxshot import source_tree
from onnxshot.batch.cells import Cell, Done, Row
from onnxshot.batch.store import Store
from onnxshot.batch.worker import INTERNAL
from onnxshot.errors import ModelError
from onnxshot.files.temporary_folders import clear_dead
from onnxshot.graph.load import external_files

POLL = 0.02
"""Seconds between two looks at the memory of all workers."""

_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6 if hasattr(os, "sysconf") else 0.0
BASE_MB, PER_MB = 200, 25
"""What a cell is thought to take, and for every MB of its weights: a CNN of 14 MB was seen to take 573 MB."""


@dataclass(slots=True)
class Task:
    """A cell to be done: how often it was tried, and how many megabytes it is thought to take."""

    cell: Cell
    needs_mb: float
    tries: int = 0


@dataclass(slots=True)
class Worker:
    """A process that does one cell after another; its stderr goes to a file, for when it dies."""

    process: subprocess.Popen[str]
    errors: IO[str]
    task: Task | None = None
    part: Path = field(default_factory=Path)

    def ask(self, task: Task, part: Path, how: dict[str, Any]) -> None:
        """Have it do a cell."""
        self.task, self.part = task, part
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, which its stdout tells
            self.process.stdin.write(json.dumps({"cell": task.cell.to_dict(), "folder": str(part), "how": how}) + "\n")
            self.process.stdin.flush()

    def stop(self) -> str:
        """Kill it; what it said last."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        self.errors.close()
        return said[-1] if said else ""


@dataclass(slots=True)
class Local:
    """An engine: it hands cells to workers, and rows to whoever asked.

    Attributes:
        workers: how many cells are done at once.
        how: fields of Settings that are the same for all cells, threads of one worker among them.
        retries: how often a cell is tried again where its process died or failed in a way that nobody has foreseen.
        max_memory_mb: bound of the resident memory of this process and all workers; a cell that alone takes more fails.
        peak_mb: most that was seen.
    """

    workers: int
    how: dict[str, Any]
    retries: int = 1
    max_memory_mb: float | None = None
    peak_mb: float = 0.0
    _running: list[Worker] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self, cells: Sequence[Cell], store: Store, done: Done) -> None:
        """Do all cells, `done` with each in this thread."""
        waiting = [Task(cell, estimate_mb(cell)) for cell in cells]
        waiting.sort(key=lambda task: -task.needs_mb)  # the longest first, so that none is left alone at the end
        try:
            while waiting or any(worker.task for worker in self._running):
                while (task := self._next(waiting)) is not None:
                    self._start(task, store)
                for key, _ in self._selector.select(POLL if self.max_memory_mb else 0.2):
                    for task, part, row in self._answer(key.data):
                        if row is None:
                            waiting.insert(0, task)
                        else:
                            done(task.cell, part, row)
                for task, part, row in self._watch():
                    if row is None:
                        waiting.append(task)
                    else:
                        done(task.cell, part, row)
        finally:
            for worker in self._running:
                worker.stop()
            clear_dead(Path(tempfile.gettempdir()))  # what those have left that were killed

    # ------------------------------------------------------------------ which cell is next

    def _next(self, waiting: list[Task]) -> Task | None:
        """The cell to start now, taken out of those that wait; None where none is, or must not be for its memory.

        First one whose model no worker is at: its second target finds the statistics that its first has left.
        """
        busy = [worker.task for worker in self._running if worker.task is not None]
        if not waiting or len(busy) >= self.workers:
            return None
        models = {task.cell.name for task in busy}
        order = sorted(waiting, key=lambda task: task.cell.name in models)
        room = next((task for task in order if self._has_room(task, busy)), None)
        if room is not None:
            waiting.remove(room)
        return room

    def _has_room(self, task: Task, busy: Sequence[Task]) -> bool:
        if self.max_memory_mb is None or not busy:
            return True  # alone it may try
        others = sum(max(w.task.needs_mb, rss_mb(w.process.pid)) for w in self._running if w.task is not None)
        return rss_mb(os.getpid()) + others + task.needs_mb <= self.max_memory_mb

    def _start(self, task: Task, store: Store) -> None:
        """Give the cell to a worker that is idle, or to a new one."""
        for worker in [one for one in self._running if one.task is None]:
            if self.max_memory_mb is not None and rss_mb(worker.process.pid) > BASE_MB:
                self._drop(worker)  # what it has taken it does not give back
        idle = [worker for worker in self._running if worker.task is None]
        worker = idle[0] if idle else self._spawn()
        task.tries += 1
        store.note({"event": "started", "cell": task.cell.place, "key": task.cell.key, "try": task.tries})
        worker.ask(task, store.part(task.cell), self.how)

    # ------------------------------------------------------------------ workers

    def _spawn(self) -> Worker:
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # as long as it lives
        process = subprocess.Popen(
            source_tree.command("onnxshot.batch.worker"), env=source_tree.environment(), text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        worker = Worker(process, errors)
        self._running.append(worker)
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _drop(self, worker: Worker) -> str:
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        self._running.remove(worker)
        return worker.stop()

    def _answer(self, worker: Worker) -> Iterator[tuple[Task, Path, Row | None]]:
        """What a worker says, or that it died: the task with its row, or without one where it is to be tried again."""
        assert worker.process.stdout is not None
        line, task, part = worker.process.stdout.readline(), worker.task, worker.part
        row: Row = json.loads(line) if line.endswith("\n") else {}
        if not row:
            said = self._drop(worker)
            ended = worker.process.returncode
            row = {"error": f"its process died: {_ended(ended)}{f': {said}' if said else ''}", "code": INTERNAL}
        worker.task = None
        if task is None:
            return
        again = row.get("code") == INTERNAL and task.tries <= self.retries
        yield task, part, None if again else {"name": task.cell.name, "target": task.cell.target, **row}

    def _watch(self) -> Iterator[tuple[Task, Path, Row | None]]:
        """Where all processes together take more than they may, the worker that is furthest above its share is killed.

        Its cell is done later, alone; where it was alone, it fails.
        """
        sizes = {worker.process.pid: rss_mb(worker.process.pid) for worker in self._running}
        total = rss_mb(os.getpid()) + sum(sizes.values())
        self.peak_mb = max(self.peak_mb, total)
        if self.max_memory_mb is None or total <= self.max_memory_mb:
            return
        busy = [worker for worker in self._running if worker.task is not None]
        worst = max(busy, key=lambda worker: sizes[worker.process.pid] - worker.task.needs_mb, default=None)  # type: ignore[union-attr]
        if worst is None or worst.task is None:
            return
        task = worst.task
        self._drop(worst)
        if len(busy) > 1:
            task.needs_mb, task.tries = self.max_memory_mb, task.tries - 1
            yield task, worst.part, None
            return
        error = f"it takes more than {self.max_memory_mb:g} MB of memory (give --max-memory more, or --samples less)"
        yield task, worst.part, task.cell.row(error=error, code=INTERNAL)


def estimate_mb(cell: Cell) -> float:
    """Megabytes that a cell is thought to take: of its weights, several times."""
    files = [Path(cell.entry.model)]
    with contextlib.suppress(ModelError):
        files += external_files(files[0])
    return BASE_MB + PER_MB * sum(p.stat().st_size for p in files if p.is_file()) / 1e6


def rss_mb(pid: int) -> float:
    """Resident memory of a process; 0 where it is gone, or the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_MB
    return 0.0


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
