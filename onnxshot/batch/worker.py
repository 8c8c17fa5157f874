"""Run one cell, or serve as a worker process that runs one cell after another, requested as lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxshot.api.compress import compress
from onnxshot.api.emit import emit
from onnxshot.api.quantize import quantize
from onnxshot.api.quantize_folder import quantize_folder
from onnxshot.batch.cells import Cell, Row
from onnxshot.delivery.artifacts import ONNX, runtime_of
from onnxshot.delivery.record import sha256
from onnxshot.delivery.write_results import peak_rss_mb, reset_peak_rss
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.advice import BAD, CAUTION, READY
from onnxshot.report.report import Report
from onnxshot.report.saving import save_report
from onnxshot.report.values import Artifact
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.search.goal import function_of, score
from onnxshot.settings import Settings
from onnxshot.targets import RUNTIMES, target_named

_LEVELS = (BAD, CAUTION, READY)
INTERNAL = 1
"""The exit code of an internal error. Such a cell may be tried again."""


def run_cell(cell: Cell, folder: Path, settings: Settings) -> Row:
    """Compress the model of a cell into `folder`, with report.json. Errors are returned in the row, never raised.

    The row holds `error` and `code` if the cell failed, else the values of `measured`.
    """
    started = time.perf_counter()
    reset_peak_rss()  # of the cells before it in this process
    row = cell.row()
    try:
        row |= measured(cell, folder, settings)
    except OnnxshotError as error:
        row |= {"error": str(error), "code": error.exit_code}
    except Exception as error:
        row |= {"error": f"internal error: {type(error).__name__}: {error}", "code": INTERNAL}
    return row | {"seconds": round(time.perf_counter() - started, 3), "peak_rss_mb": round(peak_rss_mb(), 1)}


def measured(cell: Cell, folder: Path, settings: Settings) -> dict[str, Any]:
    """Make the artifacts of a cell, and return what the summary and the thresholds need.

    Figures come from the runtime of the target if it is installed, else from ONNX Runtime.

    Returns:
        outputs ({file, bytes, sha256} each), sqnr_db (of the worst output), latency, int8_macs_share, drop (None
        without an evaluation function), and report_verdict.

    Raises:
        OnnxshotError: as `quantize`, `compress` and `emit` do.
    """
    if Path(cell.entry.model).is_dir():
        return measured_folder(cell, folder, settings)
    entry, stages = cell.entry, cell.stages
    formats = entry.emit or (target_named(cell.target).emits,)
    output = folder / f"{cell.name}.onnx"
    first = stages.stages[0]
    if len(stages.stages) == 1 and isinstance(first, Recipe):
        report: Report = quantize(
            entry.model, entry.calib, stats=entry.stats, output=output, preset=entry.reading, recipe=first,
            settings=settings, emit=formats,
        ).report  # fmt: skip
        artifacts = report.outputs
    else:
        report = compress(
            entry.model, entry.calib, recipe=stages, output=output, preset=entry.reading, settings=settings
        ).report
        others = [name for name in formats if name != ONNX]
        artifacts = report.outputs if ONNX in formats or not others else []
        if others:
            artifacts = artifacts + emit(
                output, to=others, target=target_named(cell.target).name, output=output, calib=entry.calib,
                preset=entry.reading, reference=entry.model, settings=settings,
            ).outputs  # fmt: skip
            report.outputs = artifacts  # the verdict covers them
        if not artifacts[0].path.endswith(".onnx"):
            output.unlink()
    drop = _drop(cell, artifacts[-1], settings)
    save_report(report.to_dict(), folder / "report.json")
    best = artifacts[-1]
    return {
        "outputs": _outputs(folder),
        "sqnr_db": best.sqnr_db if best.sqnr_db is not None else report.worst_db,
        "latency": best.latency or report.latency,
        "int8_macs_share": best.int8_macs_share if best.int8_macs_share is not None else report.int8_macs_share,
        "drop": drop,
        "report_verdict": report.verdict.to_dict(),
    }


def measured_folder(cell: Cell, folder: Path, settings: Settings) -> dict[str, Any]:
    """As `measured`, for a folder that a library loads. It is written to a folder with the name of the cell.

    Of several models, the accuracy and the verdict are those of the worst, and the latency is that of the largest.
    """
    entry, first = cell.entry, cell.stages.stages[0]
    if len(cell.stages.stages) > 1 or not isinstance(first, Recipe):
        raise UsageError(f"{entry.model} is a folder, which takes no stages", "name one .onnx file of the folder")
    if entry.emit not in (None, (ONNX,)) or entry.thresholds.eval is not None or entry.stats is not None:
        what = "emit, stats and thresholds.eval are for one file"
        raise UsageError(f"{entry.model} is a folder: {what}", "leave them out, or name one .onnx file of the folder")
    result = quantize_folder(
        entry.model, entry.calib, output=folder / cell.name, preset=entry.reading, recipe=first, settings=settings
    )
    save_report(result.to_dict(), folder / "report.json")
    reports = list(result.reports.values())
    largest = max(reports, key=lambda report: report.input_bytes)
    verdicts = sorted((report.verdict for report in reports), key=lambda verdict: _LEVELS.index(verdict.level))
    figures = [db for report in reports if (db := report.worst_db) is not None]
    return {
        "outputs": _outputs(folder),
        "sqnr_db": min(figures, default=None),
        "latency": largest.latency,
        "int8_macs_share": largest.int8_macs_share,
        "drop": None,
        "report_verdict": verdicts[0].to_dict(),
    }


def _outputs(folder: Path) -> list[dict[str, Any]]:
    """Path in the folder, size and SHA-256 of every file of a cell, without its report."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "report.json")
    return [
        {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    ]


def _drop(cell: Cell, artifact: Artifact, settings: Settings) -> float | None:
    """Return the score of the model minus that of the artifact; None without an evaluation function."""
    where = cell.entry.thresholds.eval
    evaluate = function_of(where)
    if evaluate is None:
        return None
    path = Path(artifact.path)
    runtime = runtime_of(artifact.format) if artifact.format in RUNTIMES else None
    if runtime is not None and runtime.runs_here():
        return None
    made = Runner(path, threads=settings.threads) if runtime is None else runtime.load(path, threads=settings.threads)
    before = score(evaluate, Runner(Path(cell.entry.model), threads=settings.threads).run, where)
    return before - score(evaluate, made.run, where)


def settings_of(cell: Cell, how: Mapping[str, Any]) -> Settings:
    """Return the Settings of a cell. how: the fields that all cells share; a memory budget of its own comes first."""
    own: dict[str, Any] = {} if cell.entry.memory is None else {"memory": cell.entry.memory}
    entry = cell.entry
    own |= {"search_seconds": entry.search_seconds, "accept": entry.accept}
    return Settings(samples=entry.samples, seed=entry.seed, **{**how, **own})


def serve() -> None:
    """Read requests {cell, folder, how} from stdin, one per line, and write one row per line to stdout.

    The process ends as soon as stdin is closed, even in the middle of a cell, because the batch has ended then.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what runtimes print goes to stderr
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            asked.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = json.loads(asked.get())
        cell = Cell.from_dict(request["cell"])
        row = run_cell(cell, Path(request["folder"]), settings_of(cell, request["how"]))
        answers.write(json.dumps(row) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
