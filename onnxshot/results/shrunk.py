"""What came of removing channels: the smaller model, and a report with a row for each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxshot.delivery.record import leave_beside
from onnxshot.delivery.write_results import refuse_lost
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft
from onnxshot.graph.skip import Skip
from onnxshot.report.values import rounded
from onnxshot.report.verdict import Verdict, judge


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What became of one group: channels before and after, and the loss expected of it, as a share of the outputs."""

    group: str
    kind: str
    layers: tuple[str, ...]
    before: int
    after: int
    loss: float


@dataclass(slots=True)
class ShrinkReport:
    """What was cut and what that brings. Keys of `to_dict` are stable.

    Attributes:
        input, target: the file read, and the target by its name.
        groups: what became of each group that might be cut.
        branches: first layers of the residual branches that were left out whole.
        skips: layers whose outputs cannot be cut or were to be left, and why.
        sizes: what the work is counted at: `from` a sample, frozen sizes, or inferred with free dimensions as 1;
            `unknown`: nodes whose size is not known even so, counted at one position.
        macs, params: (before, after): multiply-accumulates of one run, and float parameters.
        latency: median share of the float model's that is left, timed in turns; None where it was not measured.
        score, drop: of a search by `evaluate`: that of the float model, and how far the result is below it.
        reached: whether the target was met.
        samples: how many were learned from.
        notes: what a user should know.
    """

    input: str
    target: dict[str, Any]
    groups: list[GroupRow] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    macs: tuple[int, int] = (0, 0)
    params: tuple[int, int] = (0, 0)
    latency: float | None = None
    drop: float | None = None
    score: float | None = None
    reached: bool = True
    samples: int = 0
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, with its `verdict`."""
        values: dict[str, Any] = rounded({**asdict(self), "verdict": self.verdict.to_dict()})
        return values

    @property
    def verdict(self) -> Verdict:
        """Whether the result is ready, what speaks against it, and what to do next."""
        return judge(asdict(self))


@dataclass(slots=True)
class ShrinkResult:
    """A smaller model and what was done to it. Nothing is printed and, without an output path, nothing is kept."""

    model: Model
    report: ShrinkReport

    def save(self, path: str | Path) -> Path:
        """Write the model, aside first; the path. Raises UsageError as `Made.save` does."""
        refuse_lost(self.model, Path(path))
        self.model.forget_inferred()
        with draft(self.model, Path(path)) as written:
            load_model(written.path)  # what is called done was read back
            return written.publish()

    def deliver(self, output: Path, source: Mapping[str, Any]) -> None:
        """Write the model, and beside it its record. source: what that says of where the run's inputs lay."""
        self.model.forget_inferred()
        with draft(self.model, output) as written:
            load_model(written.path)
            written.publish()
        files = [written.final.parent / name for name in written.files]
        self.report.notes += leave_beside(self.model, output, source, files)
