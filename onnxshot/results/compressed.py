"""The result of `compress`: the last model, and a report with one row per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxshot.delivery.write_results import Made
from onnxshot.report.report import Report
from onnxshot.results.shrunk import ShrinkReport


@dataclass(frozen=True, slots=True)
class StageRow:
    """One model of the run, the given one first.

    Attributes:
        name: 'input', 'pruned', 'shrunk', 'quantized' or 'halved', numbered if there are several of a kind.
        path: The kept file; empty if it was not kept.
        bytes: Its size.
        sqnr_db: SQNR in dB of its outputs relative to the input model, on held-out samples; None for the input.
        agreement: Share 0..1 of equal top-1 classes; None if no output looks like class scores.
        latency_ms: Milliseconds of one run in ONNX Runtime, in interleaved runs with the input.
        speedup: Times as fast as the input.
        report: Report of the stage, which compares it with the stage before; None for the input.
    """

    name: str
    path: str
    bytes: int
    sqnr_db: float | None
    agreement: float | None
    latency_ms: float
    speedup: float
    report: Report | ShrinkReport | None


@dataclass(slots=True)
class CompressReport(Report):
    """The report of `compress`: the last model compared with the given one; `stages` has one row per model."""

    stages: list[StageRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, with its `verdict` and that of every stage."""
        values = Report.to_dict(self)
        for row, stage in zip(values["stages"], self.stages, strict=True):
            row["report"] = stage.report.to_dict() if stage.report is not None else None
        return values


@dataclass(slots=True)
class CompressResult(Made):
    """A compressed model and its report."""

    report: CompressReport
