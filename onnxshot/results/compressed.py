"""What came of stages run one after the other: the last model, and a report with a row for each."""

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
        name: input, pruned, shrunk or quantized, numbered where there are several of a kind.
        path: the file that was kept; empty where none was.
        bytes: its size.
        sqnr_db: of its outputs against those of the input, on samples nothing was learned from; None of the input.
        agreement: share 0..1 of equal top-1 classes; None where no output looks like class scores.
        latency_ms, speedup: of one run in ONNX Runtime, in turns with the input.
        report: of the stage itself, held against the stage before; None of the input.
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
    """What came of all stages, held against the model that was given; `stages` has a row for each."""

    stages: list[StageRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, with its `verdict` and that of every stage."""
        values = Report.to_dict(self)
        for row, stage in zip(values["stages"], self.stages, strict=True):
            row["report"] = stage.report.to_dict() if stage.report is not None else None
        return values


@dataclass(slots=True)
class CompressResult(Made):
    """A compressed model and the proof."""

    report: CompressReport
