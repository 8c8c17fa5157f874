"""The local engine: run cells in worker processes on this machine, within a memory limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from onnxshot import memory, source_tree, system
from onnxshot.batch.cells import Cell, Done, Row
from onnxshot.batch.memory_needs import BASE_MB, Needs
from onnxshot.batch.store import Store
from onnxshot.batch.worker import INTERNAL
from onnxshot.files.temporary_folders import clear_dead
from onnxshot.wording import worded

POLL = 0.02
"""Seconds between two measurements of the memory of all workers."""

@dataclass(slots=True)
class Task:
    """A cell in the queue, with its estimated memory in MB and the number of its tries.

    too_large: whether it exceeded the limit beside others, so that it must run alone.
    """

    cell: Cell
    needs_mb: float
    tries: int = 0
    too_large: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process, which runs one cell after another. Its stderr goes to a file, read if it dies."""

    process: subprocess.Popen[str]
    errors: IO[str]
    task: Task | None = None
    part: Path = field(default_factory=Path)

    def ask(self, task: Task, part: Path, how: dict[str, Any]) -> None:
        """Send it a cell to run."""
        self.task, self.part = task, part
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which `_answer` sees at the end of its stdout
            self.process.stdin.write(json.dumps({"cell": task.cell.to_dict(), "folder": str(part), "how": how}) + "\n")
            self.process.stdin.flush()

    def stop(self) -> str:
        """Kill it and return the last line of its stderr."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        self.errors.close()
        return said[-1] if said else ""

    def listen(self, answers: queue.SimpleQueue[tuple[Worker, str]]) -> None:
        """Pass on its answers, and an empty line at its end, from a thread: pipes cannot be waited for on Windows."""
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                answers.put((self, line))
        answers.put((self, ""))


@dataclass(slots=True)
class Local:
    """The engine that runs cells in worker processes.

    Attributes:
        workers: number of cells that run at once.
        how: fields of Settings that all cells share; `threads` is per worker.
        retries: how often a cell is tried again if its process died or failed with an internal error.
        max_memory_mb: limit of the resident memory of this process and all workers. A cell that exceeds it alone fails.
        needs: the memory that cells take: measured on other targets of the same model, else estimated.
        peak_mb: highest memory that was measured.
    """

    workers: int
    how: dict[str, Any]
    retries: int = 1
    max_memory_mb: float | None = None
    needs: Needs = field(default_factory=Needs)
    peak_mb: float = 0.0
    _running: list[Worker] = field(default_factory=list)
    _answers: queue.SimpleQueue[tuple[Worker, str]] = field(default_factory=queue.SimpleQueue)

    def run(self, cells: Sequence[Cell], store: Store, done: Done) -> None:
        """Run all cells. Calls `done` in this thread as each one ends."""
        waiting = [Task(cell, self.needs.mb(cell)) for cell in cells]
        waiting.sort(key=lambda task: -task.needs_mb)  # largest first, so that no large cell runs alone at the end
        try:
            while waiting or any(worker.task for worker in self._running):
                while (task := self._next(waiting)) is not None:
                    self._start(task, store)
                with contextlib.suppress(queue.Empty):
                    answer = self._answers.get(timeout=POLL if self.max_memory_mb else 0.2)
                    for task, part, row in self._answer(*answer):
                        if row is None:
                            waiting.insert(0, task)
                        else:
                            self._learn(task.cell, row, waiting)
                            done(task.cell, part, row)
                for task, part, row in self._watch():
                    if row is None:
                        waiting.append(task)
                    else:
                        done(task.cell, part, row)
        finally:
            for worker in self._running:
                worker.stop()
            clear_dead(Path(tempfile.gettempdir()))  # temporary files of workers that were killed

    # ------------------------------------------------------------------ scheduling

    def _next(self, waiting: list[Task]) -> Task | None:
        """Remove the next cell from the queue; None if no cell may start now.

        Cells whose model no worker is processing come first: a second target of the same model can then reuse the
        calibration cache of the first.
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

    def _learn(self, cell: Cell, row: Row, waiting: Sequence[Task]) -> None:
        """Estimate the waiting cells of the same model by what this one took."""
        self.needs.learn(cell, row)
        for task in waiting:
            if task.cell.name == cell.name and not task.too_large:
                task.needs_mb = self.needs.mb(task.cell)

    def _has_room(self, task: Task, busy: Sequence[Task]) -> bool:
        """Whether a cell fits: within the limit, or else within the memory that the running ones will leave free."""
        if not busy:
            return True  # a cell that runs alone is always tried
        running = [(w.task.needs_mb, rss_mb(w.process.pid)) for w in self._running if w.task is not None]
        if self.max_memory_mb is None:
            growth = sum(max(needs - has, 0.0) for needs, has in running)
            return growth + task.needs_mb <= memory.free_bytes() / 1e6
        others = sum(max(needs, has) for needs, has in running)
        return rss_mb(os.getpid()) + others + task.needs_mb <= self.max_memory_mb

    def _start(self, task: Task, store: Store) -> None:
        """Give the cell to an idle worker, or to a new one."""
        for worker in [one for one in self._running if one.task is None]:
            if self.max_memory_mb is not None and rss_mb(worker.process.pid) > BASE_MB:
                self._drop(worker)  # a process does not return its memory to the system
        idle = [worker for worker in self._running if worker.task is None]
        worker = idle[0] if idle else self._spawn()
        task.tries += 1
        store.note({"event": "started", "cell": task.cell.place, "key": task.cell.key, "try": task.tries})
        worker.ask(task, store.part(task.cell), self.how)

    # ------------------------------------------------------------------ workers

    def _spawn(self) -> Worker:
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # open while the worker lives
        process = subprocess.Popen(
            source_tree.command("onnxshot.batch.worker"), env=source_tree.environment(), text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        worker = Worker(process, errors)
        self._running.append(worker)
        threading.Thread(target=worker.listen, args=(self._answers,), daemon=True).start()
        return worker

    def _drop(self, worker: Worker) -> str:
        self._running.remove(worker)
        return worker.stop()

    def _answer(self, worker: Worker, line: str) -> Iterator[tuple[Task, Path, Row | None]]:
        """Read the answer of a worker, or note that it died. Yields (task, folder, row); row is None to try again."""
        if worker not in self._running:  # it was stopped
            return
        task, part = worker.task, worker.part
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
        """Kill the worker that exceeds its estimate most, if all processes together exceed the memory limit.

        Its cell runs again later, alone. A cell that already ran alone fails.
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
            task.needs_mb, task.too_large, task.tries = self.max_memory_mb, True, task.tries - 1
            yield task, worst.part, None
            return
        hint = worded("raise [[max_memory_mb|--max-memory]] or lower [[samples]]")
        error = f"it takes more than {self.max_memory_mb:g} MB of memory ({hint})"
        yield task, worst.part, task.cell.row(error=error, code=INTERNAL)


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 if it ended, or on systems without /proc."""
    return system.resident_bytes(pid) / 1e6


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
