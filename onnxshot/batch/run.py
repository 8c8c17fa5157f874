"""`run`: all cells of a manifest, each done once, whatever happened to earlier runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxshot.batch.cells import Cell, Row, fetched
from onnxshot.batch.file_conflicts import files_of
from onnxshot.batch.local_engine import Local
from onnxshot.batch.manifest import Manifest, load_manifest
from onnxshot.batch.ray_engine import Ray
from onnxshot.batch.remote_store import store_of
from onnxshot.batch.resume import CellKeys, finished_row
from onnxshot.batch.store import Store
from onnxshot.batch.summary import Summary, judged
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.remote.copies import Copies

ENGINES = ("local", "ray")


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
        UsageError: the manifest is wrong, its output is in use, or a result would replace what is read.
        TargetError: an extra is not installed.
    """
    started = time.perf_counter()
    if engine not in ENGINES:
        raise UsageError(f"the engine is {engine!r}", f"one of {', '.join(ENGINES)}")
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest, arguments)
    threads = max(1, (threads or os.cpu_count() or 1) // workers)
    how = {"threads": threads, "use_cache": use_cache}
    files_of(manifest).check()
    store = store_of(manifest.output)
    cells = [Cell(entry, target) for entry in manifest.entries for target in manifest.targets]
    try:
        rows = _Rows(store, told)
        keys = CellKeys()
        waiting = [cell for cell in (rows.begun(cell, keys) for cell in cells) if cell is not None]
        made = Ray(how, retries) if engine == "ray" else Local(workers, how, retries, max_memory_mb)
        made.run(waiting, store, rows.keep)
        ordered = tuple(rows.found[cell.place] for cell in cells)
        seconds = round(time.perf_counter() - started, 3)
        summary = Summary(ordered, seconds, round(made.peak_mb, 1) or None)
        store.summarize(summary.to_dict())
        return summary
    finally:
        store.close()


@dataclass(slots=True)
class _Rows:
    """The rows that are there, by the place of their cells, each told as soon as it is."""

    store: Store
    told: Callable[[Row], None]
    copies: Copies = field(default_factory=Copies)
    found: dict[str, Row] = field(default_factory=dict)

    def begun(self, cell: Cell, keys: CellKeys) -> Cell | None:
        """The cell with its key and local copies; None where it is finished, or cannot be begun."""
        try:
            cell = fetched(cell, self.copies)
            cell = keys.keyed(cell)
        except OnnxshotError as e:
            row = cell.row(error=self.copies.named(str(e)), code=e.exit_code)
            self.store.note({"event": "failed", "cell": cell.place, **row})
            self._add(cell, row, resumed=False)
            return None
        known = finished_row(cell, self.store)
        if known is None:
            return cell
        self._add(cell, known, resumed=True)
        return None

    def keep(self, cell: Cell, part: Path, row: Row) -> None:
        """Publish the results of a cell, or remove what a failed one has left."""
        if "error" not in row:
            try:
                self.store.publish(cell, part, row)
            except OnnxshotError as e:
                row = cell.row(error=str(e), code=e.exit_code)
        if "error" in row:
            row["error"] = self.copies.named(row["error"])
            self.store.discard(part)
            self.store.note({"event": "failed", "cell": cell.place, **row})
        else:
            self.store.note({"event": "done", "cell": cell.place, **row})
        self._add(cell, row, resumed=False)

    def _add(self, cell: Cell, row: Row, *, resumed: bool) -> None:
        self.found[cell.place] = judged(cell, row, resumed=resumed)
        self.told(self.found[cell.place])
