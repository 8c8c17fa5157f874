"""`run`: all cells of a manifest, each done once, whatever happened to earlier runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxshot.batch.cells import Cell, Contents, cell_of, fetched
from onnxshot.batch.local import Local
from onnxshot.batch.manifest import Manifest, load_manifest
from onnxshot.batch.ray_engine import Ray
from onnxshot.batch.remote_store import store_of
from onnxshot.batch.store import Store
from onnxshot.batch.summary import Summary, judged
from onnxshot.errors import OnnxshotError, UsageError

ENGINES = ("local", "ray")
Row = dict[str, Any]


def run(
    manifest: Manifest | str | Path,
    *,
    workers: int = 1,
    engine: str = "local",
    threads: int | None = None,
    max_memory_mb: float | None = None,
    retries: int = 1,
    use_cache: bool = True,
    arguments: Mapping[str, str] | None = None,
    told: Callable[[Row], None] = lambda _: None,
) -> Summary:
    """Compress every model of a manifest for every target; what earlier runs have finished is not done again.

    Results go to output/<name>/<target>/, as a whole or not at all; output/batch.jsonl is the log, summary.json the
    summary. A cell that fails stops no other.

    Args:
        manifest: a Manifest, or the path of one.
        workers: how many cells are done at once, by processes of their own.
        engine: local, or ray: the cells as tasks of a cluster, where `workers` and `max_memory_mb` are up to Ray.
        threads: CPU threads of all workers together; None: as many as this process may use.
        max_memory_mb: bound of the resident memory of all processes.
        retries: how often a cell is tried again where its process died.
        use_cache: keep and reuse statistics.
        arguments: of the manifest, `${name:default}` there.
        told: called with every row as soon as it is there.

    Raises:
        UsageError: the manifest is wrong, or its output is in use; TargetError: an extra is not installed.
    """
    started = time.perf_counter()
    if engine not in ENGINES:
        raise UsageError(f"the engine is {engine!r}", f"one of {', '.join(ENGINES)}")
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest, arguments)
    threads = max(1, (threads or os.cpu_count() or 1) // workers)
    how = {"threads": threads, "use_cache": use_cache}
    rows: dict[str, Row] = {}
    store = store_of(manifest.output)
    try:
        cells: list[Cell] = []
        contents = Contents()
        for cell in (cell_of(entry, target) for entry in manifest.entries for target in manifest.targets):
            _prepare(cell, contents, store, cells, rows, told)
        made = Ray(how, retries) if engine == "ray" else Local(workers, how, retries, max_memory_mb)

        def done(cell: Cell, part: Path, row: Row) -> None:
            _keep(store, cell, part, row)
            rows[cell.place] = judged(cell, row, resumed=False)
            told(rows[cell.place])

        made.run(cells, store, done)
        ordered = [rows[f"{entry.name}/{target}"] for entry in manifest.entries for target in manifest.targets]
        seconds = round(time.perf_counter() - started, 3)
        summary = Summary(tuple(ordered), seconds, round(made.peak_mb, 1) or None)
        store.summarize(summary.to_dict())
        return summary
    finally:
        store.close()


def _prepare(
    cell: Cell, contents: Contents, store: Store, cells: list[Cell], rows: dict[str, Row], told: Callable[[Row], None]
) -> None:
    """Put a cell to those that are to be done, or its row to the rows, where it is finished or cannot be begun."""
    try:
        cell = fetched(cell)
        cell = contents.keyed(cell)
    except OnnxshotError as e:
        row: Row = {"name": cell.name, "target": cell.target, "key": "", "error": str(e), "code": e.exit_code}
        store.note({"event": "failed", "cell": cell.place, **row})
        rows[cell.place] = judged(cell, row, resumed=False)
        told(rows[cell.place])
        return
    known = store.finished(cell)
    if known is None:
        cells.append(cell)
        return
    store.note({"event": "kept", "cell": cell.place, "key": cell.key})
    rows[cell.place] = judged(cell, known, resumed=True)
    told(rows[cell.place])


def _keep(store: Store, cell: Cell, part: Path, row: Row) -> None:
    """Publish the results of a cell, or remove what a failed one has left."""
    if "error" in row:
        shutil.rmtree(part, ignore_errors=True)
        store.note({"event": "failed", "cell": cell.place, **row})
        return
    store.publish(cell, part, row)
    store.note({"event": "done", "cell": cell.place, **row})
