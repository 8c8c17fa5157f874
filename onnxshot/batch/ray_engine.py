"""The Ray engine: run cells, and parts of calibrations, as tasks of a Ray cluster. Ray schedules and retries them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxshot.batch.cells import Cell, Done, Row
from onnxshot.batch.memory_needs import Needs
from onnxshot.batch.ray_calibration import Pass, alone, calibrated_part, settles, shared_by
from onnxshot.batch.store import Store
from onnxshot.batch.worker import INTERNAL, run_cell, settings_of
from onnxshot.errors import TargetError
from onnxshot.execution.sharding import ShardedPass

_ON_GPU = ("tensorrt",)


@dataclass(slots=True)
class Ray:
    """The engine that runs cells as Ray tasks.

    It uses the cluster that is already connected, the one that RAY_ADDRESS names, or a new local one. All nodes must
    see models, data and output under the same paths, as on a shared file system.

    Attributes:
        how: fields of Settings that all cells share; `threads` is the number of CPUs that a cell requests.
        retries: how often a task is tried again if its process or node died.
        peak_mb: always 0; the memory of all processes together is not measured.
        needs: the memory that a task requests.
    """

    how: dict[str, Any]
    retries: int = 1
    peak_mb: float = 0.0
    needs: Needs = field(default_factory=Needs)
    _parts: dict[Any, Pass] = field(default_factory=dict)  # by task
    _cells: dict[Any, tuple[Cell, Path, str]] = field(default_factory=dict)
    # by task: its cell, the folder of its tries, and how it was calibrated

    def run(self, cells: Sequence[Cell], store: Store, done: Done) -> None:
        """Run all cells. Calls `done` in this thread as each one ends.

        The row also holds `calibration`: the number of tasks of a shared calibration, or why there was none.
        """
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            ray.init(logging_level="ERROR", log_to_driver=False)
        try:
            self._run(ray, cells, store, done)
        finally:
            if started:
                ray.shutdown()

    def _run(self, ray: ModuleType, cells: Sequence[Cell], store: Store, done: Done) -> None:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        passes: dict[str, Pass] = {}
        for cell in cells:
            why = alone(cell, cpus)
            if why:
                self._start(ray, cell, store, f"by itself: {why}")
                continue
            shared = passes.setdefault(shared_by(cell), Pass([], ShardedPass(settles(cell), cpus)))
            shared.cells.append(cell)
        for shared in passes.values():
            self._begin(ray, shared)
        while self._parts or self._cells:
            (ready,), _ = ray.wait([*self._parts, *self._cells], num_returns=1)
            if ready in self._parts:
                shared = self._parts.pop(ready)
                if shared.add(*_result(ray, ready)):
                    self._go_on(ray, shared, store)
                continue
            cell, tries, told = self._cells.pop(ready)
            found, error = _result(ray, ready)
            row, folder = found or (cell.row(error=error, code=INTERNAL), str(tries))
            self.needs.learn(cell, row)
            done(cell, Path(folder), {**row, "calibration": told})

    def _begin(self, ray: ModuleType, shared: Pass) -> None:
        """Start the tasks of the next round of a shared calibration pass."""
        cell = shared.cells[0]
        task = ray.remote(num_cpus=1, memory=self._memory(ray, cell), max_retries=self.retries)(calibrated_part)
        for cells, share in shared.begin():
            self._parts[task.remote(cells, share)] = shared

    def _go_on(self, ray: ModuleType, shared: Pass, store: Store) -> None:
        """Start the next round of a shared pass or, after the last one, the cells that wait for it."""
        folder = store.part(shared.cells[0])
        if shared.save(folder) is None:
            self._begin(ray, shared)
            return
        for cell in shared.cells:
            self._start(ray, cell, store, shared.told_of(cell), str(folder) if shared.serves(cell) else None)

    def _start(self, ray: ModuleType, cell: Cell, store: Store, told: str, shared: str | None = None) -> None:
        """Submit a cell as a task. It requests the resources of its target, but no more than one node has.

        told: how the cell is calibrated, for its row. shared: folder of shared statistics, if they serve this cell.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = min(self.how["threads"], max(node.get("CPU", 1) for node in nodes))
        gpus = 1 if cell.target in _ON_GPU and any(node.get("GPU") for node in nodes) else 0
        memory = self._memory(ray, cell)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, memory=memory, max_retries=self.retries)(cell_done)
        folder = store.part(cell)
        store.note({"event": "started", "cell": cell.place, "key": cell.key, "try": 1})
        how = {**self.how, "shared": shared}
        self._cells[task.remote(cell.to_dict(), str(folder), how)] = (cell, folder, told)

    def _memory(self, ray: ModuleType, cell: Cell) -> int:
        """Return the bytes that a task of a cell requests: its estimated memory, but no more than one node has."""
        most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
        return int(min(self.needs.mb(cell) * 1e6, most))


def cell_done(values: dict[str, Any], folder: str, how: dict[str, Any]) -> tuple[Row, str]:
    """Task: run a cell and return (row, folder). Each try gets its own folder, as a lost one may have left files."""
    cell, made = Cell.from_dict(values), tempfile.mkdtemp(dir=folder)
    return run_cell(cell, Path(made), settings_of(cell, how)), made


def _result(ray: ModuleType, task: Any) -> tuple[Any, str]:
    """Return (result of a task, "") or (None, why it was lost)."""
    try:
        return ray.get(task), ""
    except ray.exceptions.RayError as e:
        cause = getattr(e, "cause", None)  # the exception of the task, without the traceback
        how, text = ("failed", str(cause)) if cause is not None else ("was lost", str(e))
        return None, f"its task {how}: {' '.join(text.split())[:300]}"


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as e:
        raise TargetError(f"Ray is not installed: {e}", "pip install 'onnxshot[ray]'") from e
    module: ModuleType = ray
    return module
