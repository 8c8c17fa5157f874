"""The result of `quantize_folder`: a folder, and the report of every model in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxshot.report.html.notebook import Rows, card, folded, report_facts, sentences, table
from onnxshot.report.report import Report
from onnxshot.report.verdict import WORDS
from onnxshot.wording import counted


@dataclass(frozen=True, slots=True)
class FolderResult:
    """A folder of models that was written.

    Attributes:
        source: the folder that was read.
        folder: the folder that was written.
        reports: the report of every model, by its path in `source`.
        copied: names of the files that were copied, by their paths in the folder.
        left_out: files of `source` that are neither models nor needed by them, such as weights of other frameworks.
        notes: what a user should know.

    Example:
        >>> made = onnxshot.quantize_folder("whisper/", mode="weights")
        >>> {name: report.sqnr_db for name, report in made.reports.items()}
    """

    source: Path
    folder: Path
    reports: dict[str, Report]
    copied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def _repr_html_(self) -> str:
        """A card with a row per file, which notebooks show."""
        rows = []
        for name, report in self.reports.items():
            facts = dict(report_facts(report.to_dict()))
            words = (facts["size"], facts["SQNR"], facts["agreement"], facts["speed"], WORDS[report.verdict.level])
            rows.append((name, *words))
        heads = ("file", "size", "SQNR", "agreement", "speed", "verdict")
        notes = folded(counted(len(self.notes), "note"), sentences(self.notes))
        return card(str(self.folder), (), table(Rows(heads, rows, frozenset(range(1, 5)))), notes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: `input`, `output`, `outputs`, `reports`, `copied`, `left_out` and `notes`."""
        every = {name: report.to_dict() for name, report in self.reports.items()}
        return {
            "input": str(self.source), "output": str(self.folder),
            "outputs": [artifact for values in every.values() for artifact in values["outputs"]],
            "reports": every, "copied": list(self.copied), "left_out": list(self.left_out), "notes": list(self.notes),
        }  # fmt: skip
