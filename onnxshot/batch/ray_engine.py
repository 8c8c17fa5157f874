"""Cells and calibration shards as tasks of a Ray cluster; all scheduling, and what to do about lost nodes, is Ray's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxshot.batch.cells import Cell, Done, Row
from onnxshot.batch.local import estimate_mb
from onnxshot.batch.store import Store
from onnxshot.batch.worker import INTERNAL, run_cell, settings_of
from onnxshot.calibration.readers import split
from onnxshot.errors import CalibrationError, TargetError
from onnxshot.graph.load import load_model
from onnxshot.observing.calibrating import from_data, merge_files, open_calib
from onnxshot.planning.planner import make_plan
from onnxshot.preparing import prepare
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets import target_named

_ON_GPU = ("tensorrt",)


@dataclass(slots=True)
class Ray:
    """An engine: hands cells to the cluster that is connected, that RAY_ADDRESS names, or that runs or starts here.

    All nodes must see the paths of models, data and output under the same names, as on a shared file system.

    Attributes:
        how: fields of Settings that are the same for all cells; `threads` are the CPUs that a cell asks for.
        retries: how often a task is tried again whose process or node died.
        peak_mb: not known.
    """

    how: dict[str, Any]
    retries: int = 1
    peak_mb: float = 0.0
    _shards: dict[Any, tuple[str, int]] = field(default_factory=dict)  # task -> (its data, which part)
    _cells: dict[Any, tuple[Cell, Path]] = field(default_factory=dict)  # task -> its cell, and where its tries are made

    def run(self, cells: Sequence[Cell], store: Store, done: Done) -> None:
        """Do all cells, `done` with each in this thread."""
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
        parts: dict[str, dict[int, bytes | None]] = {}  # of data -> its shards that are there
        served: dict[str, list[Cell]] = {}  # by data: the cells that wait for its statistics
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        for cell in cells:
            data = _data_of(cell) if count > 1 else ""
            if not data:
                self._start(ray, cell, cell, store)
                continue
            served.setdefault(data, []).append(cell)
            if data not in parts:
                parts[data] = {}
                task = ray.remote(num_cpus=1, max_retries=self.retries)(calibrated_shard)
                for i in range(count):
                    self._shards[task.remote(cell.to_dict(), i, count)] = (data, i)
        while self._shards or self._cells:
            (ready,), _ = ray.wait([*self._shards, *self._cells], num_returns=1)
            if ready in self._shards:
                data, i = self._shards.pop(ready)
                parts[data][i] = _result(ray, ready)[0]
                if len(parts[data]) == count:
                    self._merged(ray, served[data], list(parts.pop(data).values()), store)
                continue
            cell, tries = self._cells.pop(ready)
            found, error = _result(ray, ready)
            row, folder = found or (cell.row(error=error, code=INTERNAL), str(tries))
            done(cell, Path(folder), row)

    def _merged(self, ray: ModuleType, cells: Sequence[Cell], shards: Sequence[bytes | None], store: Store) -> None:
        """Start the cells that these shards are for, with statistics of all of them.

        Where a shard failed, or samples are there twice, each calibrates by itself, and tells what is wrong.
        """
        whole = None
        there = [shard for shard in shards if shard]
        if None not in shards and len(there) > 1:
            folder = store.part(cells[0])
            paths = [folder / f"{i}.npz" for i in range(len(there))]
            for path, shard in zip(paths, there, strict=True):
                path.write_bytes(shard)
            try:
                merge_files(paths, folder / "all.npz")
                whole = str(folder / "all.npz")
            except CalibrationError:
                whole = None
        for cell in cells:
            self._start(ray, cell, cell if whole is None else cell.with_stats(whole), store)

    def _start(self, ray: ModuleType, cell: Cell, given: Cell, store: Store) -> None:
        """Hand a cell to the cluster, asking for what its target takes, but for no more than a node has."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = min(self.how["threads"], max(node.get("CPU", 1) for node in nodes))
        memory = min(estimate_mb(cell) * 1e6, max(node.get("memory", 0) for node in nodes))
        gpus = 1 if cell.target in _ON_GPU and any(node.get("GPU") for node in nodes) else 0
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, memory=int(memory), max_retries=self.retries)(cell_done)
        folder = store.part(cell)
        store.note({"event": "started", "cell": cell.place, "key": cell.key, "try": 1})
        self._cells[task.remote(given.to_dict(), str(folder), self.how)] = (cell, folder)


def cell_done(values: dict[str, Any], folder: str, how: dict[str, Any]) -> tuple[Row, str]:
    """A task: (row, folder of the results), a new one for every try, as a try that was lost may have left files."""
    cell, made = Cell.from_dict(values), tempfile.mkdtemp(dir=folder)
    return run_cell(cell, Path(made), settings_of(cell, how)), made


def calibrated_shard(values: dict[str, Any], part: int, count: int) -> bytes:
    """A task: statistics of every count-th calibration sample from number `part` on, as a file; empty where none is."""
    cell = Cell.from_dict(values)
    entry, (recipe,) = cell.entry, cell.stages.stages
    assert isinstance(recipe, Recipe)
    settings = settings_of(cell, {"threads": 1, "use_cache": False})
    model, target = load_model(entry.model), target_named(cell.target)
    prepare(model, target, recipe)
    plan = make_plan(model, target, recipe)
    with open_calib(entry.calib, model, entry.preset, settings) as data, tempfile.TemporaryDirectory() as folder:
        mine = split(len(data))[0][part::count]
        if not mine or not plan.observe:
            return b""
        found = from_data(model, plan, recipe, data.subset(mine), settings, 0.0, settle=False)
        return found.statistics.save(Path(folder) / "part.npz").read_bytes()


def _data_of(cell: Cell) -> str:
    """What cells have in common that one set of shards serves; empty where a cell calibrates by itself.

    By default calibration stops when ranges have settled, which one pass alone can tell; so shards are of cells that
    say how many samples they take.
    """
    entry, stages = cell.entry, cell.stages.stages
    recipe = stages[0]
    single = len(stages) == 1 and isinstance(recipe, Recipe) and recipe.mode == "static" and recipe.quantizes
    if not single or entry.samples == "auto" or entry.calib in (None, "random") or entry.stats is not None:
        return ""
    assert isinstance(recipe, Recipe)
    watched = [recipe.include, recipe.to_dict()["layers"], recipe.batch, sorted(recipe.shapes.items())]
    return json.dumps([entry.model, entry.calib, entry.preset, entry.samples, entry.seed, watched])


def _result(ray: ModuleType, task: Any) -> tuple[Any, str]:
    """(what a task gave, "") or (None, why it was lost)."""
    try:
        return ray.get(task), ""
    except ray.exceptions.RayError as e:
        return None, f"its task was lost: {' '.join(str(e).split())[:300]}"


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as e:
        raise TargetError(f"Ray is not installed: {e}", "pip install 'onnxshot[ray]'") from e
    module: ModuleType = ray
    return module
