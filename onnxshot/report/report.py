"""One report of a run: the same facts as JSON for pipelines and as one short table for people."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxshot.graph.skip import Skip
from onnxshot.report.advice import is_slower
from onnxshot.report.saving import save_report
from onnxshot.report.values import Artifact, NodeReport, TensorReport, rounded, to_json
from onnxshot.report.verdict import Verdict, judge
from onnxshot.runtimes.ort_versions import VersionNeeds


@dataclass(slots=True)
class Report:
    """What was done and what it cost and brought. Keys of `to_dict` are stable.

    Attributes:
        input, outputs: the file read and the files written.
        sqnr_db: of all float outputs over all evaluation samples, at full optimization; None where nothing was run, and
            where only random inputs were: what comes of those is in `on_random_data`.
        sqnr_optimized_db, sqnr_unoptimized_db: on the first samples alone, with every graph optimization on and off: a
            difference is a runtime's mistake.
        sample_db: by float output, how SQNR is spread over single samples: least, tenth, median, samples, held; see
            `onnxshot.comparison.sample_spread`.
        output_parts: by output some of whose channels are over 30 times quieter than the others: axis, quiet, channels,
            quiet_db, loud_db.
        judged: what was kept out of these figures: `random`, nodes that draw random numbers; `ordered`, share of the
            same picks by output that TopK or the like has ordered; `copied`, outputs that are copies of inputs in part.
        output_equal: share of equal values of each output that is not float.
        on_random_data: sqnr_db, agreement, output_sqnr_db, sqnr_optimized_db and sqnr_unoptimized_db where all inputs
            were random; empty elsewhere.
        not_finite: outputs that are NaN or infinite where those of the input are not, in words.
        contract: the first difference of inputs and outputs in words; empty where there is none.
        optimizer_changes_results: the runtime's optimizations cost more than GAP_DB.
        samples: how many were calibrated on, held out and judged on, and whether they were made at random.
        sizes: what the work of `graph` is counted at: `from` a sample, frozen sizes, or inferred with free dimensions
            as 1; `unknown`: nodes whose size is not known even so, counted at one position.
        int8_macs_share: share of multiply-accumulates the runtime really ran in int8.
        float_macs: share of multiply-accumulates left in float, by operator.
        float_between_qdq: float ops the runtime left standing between a DQ and a Q: pairs it did not fuse.
        int8_unplanned: nodes that run in int8, or with weights rounded to it, although the plan or the file has them
            in float: a fault.
        onnxruntime: which versions of it load the file and run it as it was told to; None where it is for another
            runtime, or computes in bfloat16.
        latency: float_ms, the median of the float model; speedup, the median of the ratios of paired runs; ms, which is
            float_ms over speedup; sure: whether the runs tell which of the two is faster.
        skips: what stayed float, and why.
        worst: tensors, worst SQNR first.
        graph: nodes of the float model in topological order; empty where the run does not plan them one by one.
        goal: of a search: its limits, what the written file was measured to reach, `reached`, and what it `missed`.
        runtimes: of a file for every runtime: what each made of it (see delivery/portability.py).
        single: what a file for one target alone reaches: `target`, `sqnr_db`, `ms`, `speedup` over this one.
        pareto: candidates of a search that no other beats: `exclude`, `sqnr_db`, `bytes`, `latency_ms`, `drop`.
        tried: other options that were measured because the result falls short: `options`, `sqnr_db`, `agreement`,
            `bytes`, `speedup`, `output_sqnr_db`, and its verdict's `level` and `reasons`.
    """

    input: str
    recipe: dict[str, Any]
    outputs: list[Artifact] = field(default_factory=list)
    input_bytes: int = 0
    sqnr_db: float | None = None
    sqnr_optimized_db: float | None = None
    sqnr_unoptimized_db: float | None = None
    agreement: float | None = None
    output_sqnr_db: dict[str, float] = field(default_factory=dict)
    sample_db: dict[str, dict[str, float]] = field(default_factory=dict)
    output_parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    output_equal: dict[str, float] = field(default_factory=dict)
    on_random_data: dict[str, Any] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    contract: str = ""
    optimizer_changes_results: bool = False
    samples: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    sizes: dict[str, Any] = field(default_factory=dict)
    int8_macs_share: float | None = None
    float_macs: dict[str, float] = field(default_factory=dict)
    float_between_qdq: int | None = None
    int8_unplanned: list[str] = field(default_factory=list)
    onnxruntime: VersionNeeds | None = None
    sparsity: float = 0.0
    latency: dict[str, float] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    float_weights: list[Skip] = field(default_factory=list)
    worst: list[TensorReport] = field(default_factory=list)
    graph: list[NodeReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    goal: dict[str, Any] = field(default_factory=dict)
    pareto: list[dict[str, Any]] = field(default_factory=list)
    runtimes: list[dict[str, Any]] = field(default_factory=list)
    single: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the seconds that the block takes."""
        start = time.perf_counter()
        yield
        self.timings[stage] = time.perf_counter() - start

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, with its `verdict`; floats are rounded to what is measured."""
        values: dict[str, Any] = rounded({**asdict(self), "verdict": self.verdict.to_dict()})
        return values

    def to_json(self) -> str:
        """The report as one JSON object."""
        return to_json(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write it as JSON, or as a page where the name ends in .html. Raises UsageError where that cannot be done."""
        save_report(self.to_dict(), path)

    @property
    def speedup(self) -> float | None:
        """Latency of the float model over that of the candidate; None where it was not measured."""
        return self.latency.get("speedup")

    @property
    def slower(self) -> bool:
        """True where the candidate was measured to be slower than the float model, by more than measurements vary."""
        return is_slower(self.speedup) and bool(self.latency.get("sure", True))

    @property
    def verdict(self) -> Verdict:
        """Whether the result is ready, what speaks against it, and what to do next."""
        return judge(asdict(self))

    def next_step(self) -> str:
        """The one thing to do next."""
        return self.verdict.next
