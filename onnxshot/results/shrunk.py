"""The result of `shrink`: the smaller model, and a report with one row per group of channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from onnxshot.delivery.record import leave_beside
from onnxshot.delivery.write_results import Made, refuse_lost
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft
from onnxshot.graph.skip import Skip
from onnxshot.report.html import figures
from onnxshot.report.html.notebook import EDGES, Rows, card, folded, sentences, table
from onnxshot.report.values import rounded, stamped
from onnxshot.report.verdict import WORDS, Verdict, judge
from onnxshot.wording import counted


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of channels.

    Attributes:
        group: Label of the first layer that produces the channels.
        kind: 'channels', 'mlp' (hidden units) or 'heads'.
        layers: Labels of all layers that produce them.
        before: Number of channels before.
        after: Number of channels now.
        loss: Expected output error of the removal alone, as a share of the output energy.
    """

    group: str
    kind: str
    layers: tuple[str, ...]
    before: int
    after: int
    loss: float


@dataclass(slots=True, repr=False)
class ShrinkReport:
    """What was removed, and the sizes before and after. Keys of `to_dict` are stable.

    Attributes:
        input: Path of the model.
        target: The target by its name, such as {'target_flops': 0.7}.
        groups: One row per group that was eligible.
        branches: First layers of the residual branches that were removed as a whole.
        skips: Layers whose outputs were not pruned, and why.
        sizes: `from`: whether the work is counted on a sample, at fixed sizes, or with free dimensions as 1.
            `unknown`: nodes whose size is unknown, counted at one position.
        macs: (Before, after) multiply-accumulates of one run.
        params: (Before, after) number of float parameters.
        output: Path of the result; empty if it was not written.
        sqnr_db: SQNR in dB of the outputs, on samples that were set aside: no weight was fitted on them,
            but channels were chosen by them. None if not measured.
        agreement: Top-1 agreement on them, 0..1; None without an output of class scores.
        compared: Number of these samples.
        cases: Number of cases that the agreement is a share of.
        float_ms: Milliseconds of one run of the given model; None if not measured.
        latency: Latency as a share of the given model's, the median of interleaved runs; None if not measured.
        drop: How far the score of `evaluate` is below `score`; None without `evaluate`.
        score: Score of the given model; None without `evaluate`.
        reached: Whether the target was met.
        samples: Number of samples that were used.
        seconds: Wall time.
        timings: Seconds by stage.
        notes: What the user should know.
    """

    input: str
    target: dict[str, Any]
    groups: list[GroupRow] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    macs: tuple[int, int] = (0, 0)
    params: tuple[int, int] = (0, 0)
    output: str = ""
    sqnr_db: float | None = None
    agreement: float | None = None
    compared: int = 0
    cases: int = 0
    float_ms: float | None = None
    latency: float | None = None
    drop: float | None = None
    score: float | None = None
    reached: bool = True
    samples: int = 0
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, with its `verdict`."""
        values: dict[str, Any] = rounded({**asdict(self), "verdict": self.verdict.to_dict()})
        return stamped(values)

    def __repr__(self) -> str:
        """One line: the file, what is left of it, and the verdict."""
        facts = [f"{name} {text}" for name, text in self._facts() if text]
        return f"ShrinkReport({', '.join([PurePath(self.input).name, *facts, WORDS[self.verdict.level]])})"

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        rows = [(row.group, str(row.before), str(row.after)) for row in self.groups]
        removed = table(Rows(("channels of", "before", "after"), rows, frozenset({1, 2})))
        found = self.verdict
        return card(
            f"{PurePath(self.input).name}: {WORDS[found.level]}", self._facts(), sentences(found.reasons),
            folded("channels", removed), folded(counted(len(self.notes), "note"), sentences(self.notes)),
            edge=EDGES[found.level],
        )  # fmt: skip

    def _facts(self) -> list[tuple[str, str]]:
        speed = "" if self.latency is None else f"{figures.percent(self.latency, 0)} of the time"
        kept = [f"{before:,} → {after:,}" if before else "" for before, after in (self.macs, self.params)]
        score = "" if self.score is None or self.drop is None else f"{self.score:.4g} → {self.score - self.drop:.4g}"
        sqnr = "" if self.sqnr_db is None else figures.decibels(self.sqnr_db)
        return [
            ("MACs", kept[0]), ("parameters", kept[1]), ("latency", speed), ("SQNR", sqnr),
            ("agreement", figures.percent(self.agreement)), ("score", score),
        ]  # fmt: skip

    @property
    def verdict(self) -> Verdict:
        """Whether the result is ready, the problems found, and what to do next."""
        return judge(asdict(self))


@dataclass(slots=True, repr=False)
class ShrinkResult(Made):
    """A smaller model and its report.

    Attributes:
        model: The model.
        report: What was removed, and the sizes before and after.

    Example:
        >>> small = onnxshot.shrink("model.onnx", "samples/", target_flops=0.7)
        >>> result = onnxshot.quantize(small, "samples/")
    """

    report: ShrinkReport

    def __repr__(self) -> str:
        """One line: the file and what is left of it."""
        return repr(self.report).replace("ShrinkReport", "ShrinkResult", 1)

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        return self.report._repr_html_()

    def save(self, path: str | Path) -> Path:
        """Write the model atomically and return its path. Raises UsageError as `Made.save` does."""
        refuse_lost(self.model, path)
        self.model.forget_inferred()
        with draft(self.model, Path(path)) as written:
            load_model(written.path)  # read back before it is published
            return written.publish()

    def deliver(self, output: Path, source: Mapping[str, Any]) -> None:
        """Write the model and its record. source: paths and hashes of the inputs, for the record."""
        self.model.forget_inferred()
        with draft(self.model, output) as written:
            load_model(written.path)
            written.publish()
        files = [written.final.parent / name for name in written.files]
        self.report.notes += leave_beside(self.model, output, source, files)
