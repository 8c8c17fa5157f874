"""Report: what a run did and measured, as a value, as JSON, and as an HTML page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxshot import memory
from onnxshot.graph.skip import Skip
from onnxshot.progress import doing
from onnxshot.report.advice import is_slower
from onnxshot.report.saving import save_report
from onnxshot.report.values import Artifact, NodeReport, TensorReport, rounded, stamped, to_json
from onnxshot.report.verdict import Verdict, judge
from onnxshot.runtimes.ort_versions import VersionNeeds


@dataclass(slots=True)
class Report:
    """What a run did, and what it measured. The keys of `to_dict` are stable, and report.schema.json describes them.

    Figures of accuracy compare the result with the float model on held-out samples. SQNR is in dB.

    Attributes:
        input: the file that was read.
        recipe: all that was asked for, as plain values.
        outputs: the files that were written.
        input_bytes: size of the input, including external data.
        sqnr_db: SQNR over all float outputs and all samples, with all graph optimizations of the runtime. None where
            nothing was run, or where all inputs were random (see `on_random_data`).
        sqnr_optimized_db: the same on the first samples only.
        sqnr_unoptimized_db: the same on the first samples only, without graph optimizations. A difference between the
            two is a fault of the runtime.
        agreement: share 0..1 of the cases in which the highest value of an output is at the same position.
        output_sqnr_db: SQNR of each float output.
        sample_db: how the SQNR of each float output is distributed over single samples: `least`, `tenth`, `median`,
            `samples`, `held` (see onnxshot/comparison/sample_spread.py).
        output_parts: outputs some of whose channels are over 30 times quieter than the others: `axis`, `quiet`,
            `channels`, `quiet_db`, `loud_db`.
        judged: what was left out of these figures. `random`: nodes that draw random numbers. `ordered`: by output that
            an operator such as TopK has ordered, the share of equal picks. `copied`: outputs that partly copy inputs.
        matches: what is counted in outputs of a known kind (see onnxshot/comparison/output_matches.py), by output:
            `kind`, `same` and `of`. The first output that has an agreement gives `agreement`.
        output_equal: share of equal values of each output that is not float.
        output_kl: mean Kullback-Leibler divergence from the float model, in nats, of each output that is a softmax or
            is named logits.
        tokens: of a language model: `output` and `ids`, its logits and its ids; over all samples `positions`, `scored`
            (positions whose next token is known), `float_perplexity`, `perplexity`, `perplexity_rise` (0.02 for 2 %),
            `kl_nats`, `agreement`; `informative`: whether the float model predicts the samples better than chance;
            `caches`: outputs that become pasts; `steps`: the same figures where each model decodes on its own cache,
            with `windows`, `prompt`, `steps`, and `perplexity_at_once`, that of the result at the same positions where
            it runs the samples as a whole. Empty for other models, and on random data.
        on_random_data: `sqnr_db`, `agreement`, `output_sqnr_db`, `sqnr_optimized_db` and `sqnr_unoptimized_db`, if all
            inputs were random; else empty.
        not_finite: outputs that are NaN or infinite where those of the float model are not, in words.
        contract: the first difference between the inputs and outputs of the two models, in words; empty without one.
        optimizer_changes_results: whether the runtime's graph optimizations cost more than `GAP_DB`.
        samples: numbers of samples for calibration, held out and judged, and whether they are random.
        seconds: duration of the run.
        timings: seconds by stage.
        peak_rss_mb: peak resident memory in MB.
        sizes: the sizes at which multiply-accumulates are counted. `from`: "sample", "frozen" or "inferred" (with free
            dimensions as 1). `unknown`: nodes of unknown size, counted at one position.
        int8_macs_share: share 0..1 of the multiply-accumulates that the runtime really ran in int8.
        blocks: the work by weights in blocks, as it ran: `bits` of the weights, `activations` (`int8` or `float`),
            `macs_share`, the share 0..1 of the multiply-accumulates.
        float_macs: share of the multiply-accumulates left in float, by operator.
        float_between_qdq: number of float operators left between a DQ and a Q, that is, of Q/DQ pairs not fused.
        int8_unplanned: nodes that run in int8, or with weights rounded to it, although the plan or the file has them in
            float, which is a fault.
        onnxruntime: the versions of ONNX Runtime that load the file and run it as intended. None where it is for
            another runtime, or computes in bfloat16.
        sparsity: share 0..1 of zeros in the weights.
        latency: `float_ms`: median of the float model; `speedup`: median of the ratios of interleaved runs; `ms`:
            float_ms over speedup; `sure`: whether the runs show which of the two is faster; `float_cpu_ms` and
            `cpu_speedup`: the same of CPU time.
        decoding: of a decoder with a cache: `prompt_tokens`; `prompt` and `token`: the latency of a prompt of so many
            tokens, and of one token behind it, with the keys of `latency`.
        parameters: number of weights of the input.
        bits_per_weight: size of the whole result in bits, by that number; None where it is not known.
        weight_kinds: size of the weights in bytes by what they are for (see onnxshot/graph/weight_kinds.py): `kind`,
            `before`, `after`.
        skips: nodes that stayed float, and the skip reason of each.
        float_weights: weights that stayed float, and why.
        worst: tensors by SQNR, the worst first.
        graph: nodes of the float model in topological order; empty where the run does not plan single nodes.
        placed: where nodes went back to float, as the kernels of this machine are not faster in int8: `floats`, how
            many `of` those planned; `float_us` and `int8_us`, microseconds of all kernels in float and as planned;
            `gain`, how many times as fast the model is without these nodes in int8.
        notes: what else a person should know.
        goal: of a search: its limits, what the written file reaches, whether they are `reached`, and which it `missed`.
        pareto: candidates of a search that no other beats: `exclude`, `sqnr_db`, `bytes`, `latency_ms`, `drop`.
        runtimes: of a portable model: the result in each runtime (see onnxshot/delivery/portability.py).
        single: of a portable model: what a model made for one target reaches: `target`, `sqnr_db`, `ms`, `speedup`.
        look: groups of nodes that were measured in another form before the plan was final: `group`, `form`, `nodes`,
            `gain_db` of the outputs, `microseconds` that an inference takes longer (None where it was not timed),
            `kept`.
        tried: what was measured because the result fell short: `options`, `sqnr_db`, `agreement`, `bytes`, `speedup`,
            `output_sqnr_db`, `level` and `reasons` of the verdict, and `taken`, true for what became the result.
        accepted: whether the user accepts a result below the floor, or one that misses a goal.

    Example:
        report = onnxshot.compare("model.onnx", "model.int8.onnx", "samples/")
        print(report.sqnr_db, report.verdict.level)
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
    matches: dict[str, dict[str, Any]] = field(default_factory=dict)
    output_equal: dict[str, float] = field(default_factory=dict)
    output_kl: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
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
    blocks: list[dict[str, Any]] = field(default_factory=list)
    float_macs: dict[str, float] = field(default_factory=dict)
    float_between_qdq: int | None = None
    int8_unplanned: list[str] = field(default_factory=list)
    onnxruntime: VersionNeeds | None = None
    sparsity: float = 0.0
    latency: dict[str, float] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    bits_per_weight: float | None = None
    weight_kinds: list[dict[str, Any]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    float_weights: list[Skip] = field(default_factory=list)
    worst: list[TensorReport] = field(default_factory=list)
    graph: list[NodeReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    goal: dict[str, Any] = field(default_factory=dict)
    placed: dict[str, Any] = field(default_factory=dict)
    pareto: list[dict[str, Any]] = field(default_factory=list)
    runtimes: list[dict[str, Any]] = field(default_factory=list)
    single: dict[str, Any] = field(default_factory=dict)
    look: list[dict[str, Any]] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    accepted: bool = False

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to its stage in `timings`. What it freed goes back to the system."""
        start = time.perf_counter()
        with doing(stage):
            yield
        memory.release()
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, including its `verdict`; floats are rounded."""
        values: dict[str, Any] = rounded({**asdict(self), "verdict": self.verdict.to_dict()})
        return stamped(values)

    def __repr__(self) -> str:
        """One line: the file, its figures and the verdict."""
        from onnxshot.report.html.notebook import report_line

        return report_line(type(self).__name__, self.to_dict())

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        from onnxshot.report.html.notebook import report_card

        return report_card(self.to_dict())

    def to_json(self) -> str:
        """The report as a JSON object."""
        return to_json(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write the report to a file: as an HTML page if the name ends in .html, else as JSON.

        Args:
            path: the file.

        Raises:
            UsageError: the file cannot be written, or is one that the report is about.
        """
        save_report(self.to_dict(), path)

    @property
    def speedup(self) -> float | None:
        """Latency of the float model over that of the result; None where it was not measured."""
        return self.latency.get("speedup")

    @property
    def worst_db(self) -> float | None:
        """SQNR in dB of all outputs together, or of the worst one, whichever is lower; None where nothing was run."""
        total = [] if self.sqnr_db is None else [self.sqnr_db]
        return min([*total, *self.output_sqnr_db.values()], default=None)

    @property
    def slower(self) -> bool:
        """Whether the result was measured to be slower than the float model, by more than the noise."""
        return is_slower(self.speedup) and bool(self.latency.get("sure", True))

    @property
    def verdict(self) -> Verdict:
        """Whether the result is ready to deploy, what speaks against it, and what to do next."""
        return judge(asdict(self))

    def next_step(self) -> str:
        """The one thing to do next."""
        return self.verdict.next
