"""The summary of a batch: the rows of all cells, and which thresholds they miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxshot.batch.cells import Cell
from onnxshot.errors import GoalMissed
from onnxshot.report.advice import BAD, CAUTION, READY
from onnxshot.report.gain_findings import NOTHING
from onnxshot.report.verdict import WORDS
from onnxshot.search.goal import missed_limit

OK, MISSED, FAILED = "ok", "missed", "failed"
_LEVEL_TEXTS = {CAUTION: "need a closer look", BAD: "are not good enough"}


@dataclass(frozen=True, slots=True)
class Summary:
    """One row for each cell, in the order of the manifest.

    Attributes:
        rows: name, target, key, verdict (ok, missed, failed), missed (thresholds, as text), resumed (True if an earlier
            run made it), and the values of `worker.run_cell`.
        seconds: duration of the batch.
        peak_rss_mb: highest resident memory of all processes together in MB; None if the engine does not measure it.
    """

    rows: tuple[Mapping[str, Any], ...]
    seconds: float
    peak_rss_mb: float | None = None

    @property
    def exit_code(self) -> int:
        """0 if all cells passed; the code of the first that failed; 3 if none failed but one misses a threshold."""
        failed = [int(row["code"]) for row in self.rows if row["verdict"] == FAILED]
        missed = any(row["verdict"] == MISSED for row in self.rows)
        return failed[0] if failed else GoalMissed.exit_code if missed else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        counts = {verdict: sum(row["verdict"] == verdict for row in self.rows) for verdict in (OK, MISSED, FAILED)}
        counts["ready"] = sum(level_of(row) == READY for row in self.rows)
        head = {"exit_code": self.exit_code, **counts, "seconds": self.seconds, "peak_rss_mb": self.peak_rss_mb}
        return {**head, "cells": [dict(row) for row in self.rows]}

    def to_text(self) -> str:
        """Return one line with the number of cells that are fine, need a look, miss a threshold, or failed."""
        values = self.to_dict()
        said = [f"{values['ready']} of {len(self.rows)} cells are fine"]
        for level in (CAUTION, BAD):
            count = sum(row["verdict"] == OK and level_of(row) == level for row in self.rows)
            said += [f"{count} {_LEVEL_TEXTS[level]}"] if count else []
        said += [f"{values[MISSED]} miss a threshold"] if values[MISSED] else []
        said += [f"{values[FAILED]} failed"] if values[FAILED] else []
        return f"{', '.join(said)} ({self.seconds:.0f} s)"


def judged(cell: Cell, row: Mapping[str, Any], *, resumed: bool) -> dict[str, Any]:
    """Add verdict and missed thresholds to the row of a cell. A figure that was not measured misses its threshold."""
    missed = [] if "error" in row else missed_by(cell, row)
    verdict = FAILED if "error" in row else MISSED if missed else OK
    return {**row, "verdict": verdict, "missed": missed, "resumed": resumed}


def missed_by(cell: Cell, row: Mapping[str, Any]) -> list[str]:
    """List the thresholds that a row misses, as text. If nothing was quantized, that counts as a miss too."""
    size = sum(output["bytes"] for output in row["outputs"]) / 1e6
    found = {
        "min_sqnr": (row["sqnr_db"], " dB"), "max_drop": (row["drop"], ""),
        "max_latency_ms": (row["latency"].get("ms"), " ms"), "max_size_mb": (size, " MB"),
    }  # fmt: skip
    limits = asdict(cell.entry.thresholds)
    given = [name for name in found if limits[name] is not None]
    empty = given and NOTHING in row.get("report_verdict", {}).get("reasons", ())
    missed = [missed_limit(name, limits[name], *found[name]) for name in given]
    return [*filter(None, missed), *([NOTHING] if empty else [])]


def level_of(row: Mapping[str, Any]) -> str:
    """Return the level of a cell: bad if it failed or misses a threshold, else the verdict of its report.

    Rows of earlier versions have no verdict and count as ready.
    """
    if row["verdict"] != OK:
        return BAD
    return str(row.get("report_verdict", {}).get("level", READY))


def line_of(row: Mapping[str, Any]) -> str:
    """Return the status line of a cell."""
    where = f"{row['name']}/{row['target']}"
    if row["verdict"] == FAILED:
        return f"{where}  failed: {row['error']}"
    sqnr = "" if row["sqnr_db"] is None else f"  {row['sqnr_db']:.1f} dB"
    speed = f"  {row['latency']['speedup']:.2f}x" if row["latency"] else ""
    size = sum(output["bytes"] for output in row["outputs"]) / 1e6
    how = "done before" if row["resumed"] else f"{row['seconds']:.1f} s"
    judged = row.get("report_verdict", {})
    reasons = [f"{WORDS[judged['level']]}: {judged['reasons'][0]}"] if judged.get("reasons") else []
    return f"{where}  {size:.2f} MB{sqnr}{speed}  {'; '.join([*row['missed'], *reasons]) or 'ok'}  ({how})"
