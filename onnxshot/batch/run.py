"""`run`: run the cells of a manifest that are not finished yet, and return a summary of all."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxshot import logs
from onnxshot.arguments import checked
from onnxshot.batch.cells import Cell, Row, fetched
from onnxshot.batch.file_conflicts import files_of
from onnxshot.batch.local_engine import Local
from onnxshot.batch.manifest import Manifest, load_manifest
from onnxshot.batch.memory_needs import Needs, share_of
from onnxshot.batch.ray_engine import Ray
from onnxshot.batch.remote_store import store_of
from onnxshot.batch.resume import CellKeys, finished_row
from onnxshot.batch.store import Store
from onnxshot.batch.summary import OK, Summary, judged
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.memory import MOST, parsed
from onnxshot.remote.copies import Copies

ENGINES = ("local", "ray")


@checked
def run(
    manifest: Manifest | str | Path,
    *,
    workers: int = 1,
    engine: str = "local",
    threads: int | None = None,
    memory: int | str | None = None,
    max_memory_mb: float | None = None,
    retries: int = 1,
    use_cache: bool = True,
    arguments: Mapping[str, str] | None = None,
    told: Callable[[Row], None] = lambda _: None,
) -> Summary:
    """Compress every model of a manifest for every target. Cells that an earlier run finished are skipped.

    The results of each cell are written atomically to output/<name>/<target>/. output/batch.jsonl is the log and
    output/summary.json the summary. A cell that fails does not stop the others.

    Args:
        manifest: a Manifest, or the path of its YAML file.
        workers: number of cells that run at once, each in a worker process.
        engine: "local", or "ray" to run cells as tasks of a Ray cluster. Ray ignores `workers` and `max_memory_mb`.
        threads: CPU threads of all workers together. None: all CPUs.
        memory: memory budget of all workers together, as in `Settings`; each cell gets a share, or what the manifest
            gives it. None: what a run alone would get, or less where all shares do not fit the free memory. With Ray,
            each cell gets all of it.
        max_memory_mb: limit of the resident memory of all processes, in MB of 10^6 bytes. A process that exceeds it is
            ended, and its cell runs again alone.
        retries: how often a cell is tried again if its process died.
        use_cache: use the calibration cache.
        arguments: values of the arguments of the manifest, `${name:default}` there.
        told: called with the row of each cell as soon as the cell ended.

    Returns:
        The summary: one row per cell, in the order of the manifest.

    Raises:
        UsageError: the manifest is wrong, another batch writes to its output, or a result would replace an input.
        TargetError: an extra is not installed.

    Example:
        >>> summary = onnxshot.batch.run("manifest.yaml", workers=2)  # doctest: +SKIP
        >>> print(summary.to_text())  # doctest: +SKIP
    """
    started = time.perf_counter()
    if engine not in ENGINES:
        raise UsageError(f"the engine is {engine!r}", f"one of {', '.join(ENGINES)}")
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}", f"a whole number, {least} or above")
    if max_memory_mb is not None and not max_memory_mb > 0:
        raise UsageError(f"max_memory_mb is {max_memory_mb:g}", "a number of megabytes above 0")
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest, arguments)
    threads = max(1, (threads or os.cpu_count() or 1) // workers)
    share = share_of(memory, workers, max_memory_mb) if engine == "local" else parsed(memory)
    how = {"threads": threads, "use_cache": use_cache, "memory": share}
    files_of(manifest).check()
    store = store_of(manifest.output)
    cells = [Cell(entry, target) for entry in manifest.entries for target in manifest.targets]
    try:
        needs = Needs(share or MOST)
        rows = _Rows(store, told, needs)
        keys = CellKeys()
        waiting = [cell for cell in (rows.prepare(cell, keys) for cell in cells) if cell is not None]
        made = Ray(how, retries, needs=needs) if engine == "ray" else Local(workers, how, retries, max_memory_mb, needs)
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
    """The rows of the cells that ended, by place. Each one is logged and reported at once."""

    store: Store
    told: Callable[[Row], None]
    needs: Needs
    copies: Copies = field(default_factory=Copies)
    found: dict[str, Row] = field(default_factory=dict)

    def prepare(self, cell: Cell, keys: CellKeys) -> Cell | None:
        """Prepare a cell: fetch its files and compute its key. None if it is already finished or cannot start."""
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
        self.needs.learn(cell, known)
        self._add(cell, known, resumed=True)
        return None

    def keep(self, cell: Cell, part: Path, row: Row) -> None:
        """Publish the results of a cell that succeeded, or remove the files of one that failed."""
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
        verdict = self.found[cell.place]["verdict"]
        logs.RUNS.log(logging.INFO if verdict == OK else logging.WARNING, "%s: %s", cell.place, verdict)
        self.told(self.found[cell.place])
