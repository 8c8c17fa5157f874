"""The result of `compress`: the last model, and a report with one row per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxshot.delivery.write_results import Made
from onnxshot.report.digits import significant
from onnxshot.report.html import figures
from onnxshot.report.html.notebook import Rows, report_card, report_line, table
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


@dataclass(slots=True, repr=False)
class CompressReport(Report):
    """The report of `compress`: the last model compared with the given one; `stages` has one row per model."""

    stages: list[StageRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, with its `verdict` and that of every stage."""
        values = Report.to_dict(self)
        for row, stage in zip(values["stages"], self.stages, strict=True):
            row["report"] = stage.report.to_dict() if stage.report is not None else None
        return values

    def _repr_html_(self) -> str:
        """A card with a row per stage, which notebooks show."""
        rows = [
            (
                row.name, figures.megabytes(row.bytes), "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
                figures.percent(row.agreement), significant(row.latency_ms), figures.times(row.speedup),
            )
            for row in self.stages
        ]  # fmt: skip
        heads = ("stage", "size", "SQNR dB", "agreement", "ms", "speed")
        return report_card(self.to_dict(), table(Rows(heads, rows, frozenset(range(1, 6)))))


@dataclass(slots=True, repr=False)
class CompressResult(Made):
    """A compressed model and its report.

    Attributes:
        model: The model.
        report: The last model compared with the given one, and one row per stage.

    Example:
        >>> result = onnxshot.compress("model.onnx", "samples/", sparsity=0.5)
        >>> result.session().run(None, feed)
    """

    report: CompressReport

    def __repr__(self) -> str:
        """One line: the file and its figures."""
        return report_line("CompressResult", self.report.to_dict())

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        return self.report._repr_html_()
