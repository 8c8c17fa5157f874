"""The proof of a quantized model: its file read back, held against the float model tensor by tensor, and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.batches import batched
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.stats import TensorStats
from onnxshot.delivery import portability
from onnxshot.delivery.artifacts import Judged
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import Frozen
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import already_quantized
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.precision16.bfloat16_emulation import in_float, runnable
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.report import Report
from onnxshot.report.values import TensorReport
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_versions import needs
from onnxshot.settings import Settings
from onnxshot.targets import RUNTIMES
from onnxshot.targets.base import Target
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof, report_rows
from onnxshot.verification.compare_models import compare
from onnxshot.verification.float_weights import float_weights
from onnxshot.verification.io_contract import reload_check
from onnxshot.verification.reference import Reference


@dataclass(frozen=True, slots=True)
class QuantizedProof:
    """What a quantized model is held against, and how; the figures go into the report.

    Attributes:
        source: the model as it was given.
        reference: what outputs are held against; None where nothing is compared, as of a model that is too large.
        float_model: that the plan was made for, whose channels may have other scales; None where nothing is compared.
        model: the quantized one.
        frozen: sizes that its inputs were frozen at.
        held_out: numbers of the samples that nothing was learned from; empty: all.
        stats: what calibration saw, by tensor.
        target_emitted: an artifact in the target's own format is made too, and measured there.
        half: the model computes in 16 bits; `runs_nowhere`: in bfloat16, which ONNX Runtime does not run on CPUs.
        alone: makes the model for ONNX Runtime alone from samples; None where there is nothing to make it of.
    """

    report: Report
    source: str | Path | ModelProto
    reference: Reference | None
    float_model: ModelProto | None
    model: Model
    plan: Plan
    recipe: Recipe
    target: Target
    settings: Settings
    frozen: Frozen
    held_out: Sequence[int]
    stats: Mapping[str, TensorStats]
    alone: Callable[[Dataset], Model] | None
    target_emitted: bool = False
    half: bool = False
    runs_nowhere: bool = False

    def prove(self, written: Path, data: Dataset | None) -> Judged | None:
        """Read the written file back, and compare it where there is something to compare it on: that is returned.

        Raises ModelError where it does not load or run, is not the model in memory, or has other inputs or outputs.
        """
        report = self.report
        report.float_weights = float_weights(self.model, self.plan)
        report.sparsity = proof.sparsity(self.model)
        report.onnxruntime = needs(self.model) if self.target.runs_here else None
        if self.frozen:
            proof.runs_frozen(written, self.model, self.source)
        if not self.settings.verify:
            load_model(written)  # what is called done was read back at least
            return None
        proof.keeps_contract(self.source, written, self.frozen)
        with runnable(written, self.recipe.half) as one, in_float(one, wanted=self.runs_nowhere) as runs:
            return self._compare(written, runs, data)

    def _compare(self, written: Path, runs: Path, given: Dataset | None) -> Judged | None:
        """Hold the file, as ONNX Runtime runs it, against the float model, and time it where it is deployed so."""
        report, data, reference, float_model = self.report, given, self.reference, self.float_model
        if data is None and reference is not None and float_model is not None:
            data = proof.random_data(reference.model, self.model)
        if data is None or reference is None or float_model is None:
            how = "loaded in ONNX Runtime" if proof.loads(runs, self.source) else "not loaded"
            report.notes.append(f"not compared with the float model, {how}: no data that it runs on, or too large")
            return None
        held_out = data.subset(self.held_out or range(len(data)))
        if self.frozen:
            held_out = batched(held_out, self.frozen.inputs)
        if "calibration" not in report.samples:  # nothing was learned from any of them
            report.samples |= {"held_out": len(held_out), "source": data.source, "random": data.random}
        judged = Judged(reference.model, held_out)
        with report.timed("verify"):
            self._measure(reference, float_model, written, runs, held_out)
        report.worst = report_rows.with_histograms(report.worst, self.plan, self.stats)
        if not self.target.runs_here:
            how = "" if runs is written else ", which has no bfloat16, in float32"
            how += " rounded to it at every step" if self.recipe.half == "bf16" else ""
            self._prove_in_target(written, judged, how)
            return judged
        with report.timed("bench"), scratch() as folder:
            proof.record_latency(report, reference.at(folder / "float.onnx"), written, held_out, self.settings)
        if self.target.everywhere:
            self._prove_everywhere(written, given, judged)
        return judged

    def _measure(
        self, reference: Reference, float_model: ModelProto, written: Path, runs: Path, held_out: Dataset
    ) -> None:
        """Accuracy per output and tensor, and what ran in int8.

        runs: what ONNX Runtime runs for the written file, by rule that file itself. Outputs are held against the
        reference; tensors inside against the float model that the plan was made for.
        """
        report, threads, first = self.report, self.settings.threads, held_out[0]
        reload_check(self.model, written, first.feed, run=runs is written)
        found = compare(
            reference.model, runs, held_out, tensors=list(self.plan.tensors) or None, threads=threads,
            inside=float_model.SerializeToString(), sizes=self.frozen,
        )  # fmt: skip
        proof.record_comparison(report, found, random=held_out.random)
        report.worst = [_row(row.tensor, row.op, row.sqnr_db, row.clipped, self.plan) for row in found.tensors]
        report.notes += _refused_methods(self.plan)
        # Of 16 bits ONNX Runtime fuses nothing: its float32 form says what is in int8.
        with in_float(runs, wanted=self.half and runs is written) as counted:
            found_int8 = executed(counted, sample=first.feed, threads=threads)
        integers = {node.label for node in already_quantized(self.model)}  # as they came
        proof.record_execution(report, found_int8, self.plan.labels(FLOAT) - integers)

    def _prove_in_target(self, written: Path, judged: Judged, how: str) -> None:
        """Measure the file in the runtime that it is for, where that is installed and no artifact is measured in it."""
        report, name = self.report, self.target.name
        if self.target_emitted or name not in RUNTIMES:
            report.notes.append(f"checked in ONNX Runtime{how}, not in {name}; not timed")
            return
        with report.timed("bench"):
            (row,) = report.runtimes = portability.rows(written, judged, self.settings, (name,))
        if "missing" in row or "refused" in row:
            why = row.get("missing") or f"it does not take it: {row['refused']}"
            report.notes.append(f"checked in ONNX Runtime{how}, not in {name}; not timed: {why}")
        else:
            report.notes += portability.in_words(report.runtimes, {})

    def _prove_everywhere(self, written: Path, data: Dataset | None, judged: Judged) -> None:
        """Ask every runtime what it makes of the file, and compare it with one for ONNX Runtime alone."""
        report = self.report
        with report.timed("everywhere"):
            if data is not None and self.alone is not None:
                report.single = portability.compare_single_target(
                    self.alone(data), ORT.name, written, judged, self.settings
                )
            report.runtimes = portability.rows(written, judged, self.settings)
        report.notes += portability.in_words(report.runtimes, report.single)


def _refused_methods(plan: Plan) -> list[str]:
    """The tensors whose range is not chosen by the method asked for, as one note."""
    refused = {group: span.note for group, span in plan.ranges.items() if span.note}
    if not refused:
        return []
    some = ", ".join(f"{group!r} ({note})" for group, note in list(refused.items())[:3])
    more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
    return [f"min-max ranges instead of those asked for on {some}{more}"]


def _row(tensor: str, op: str, sqnr_db: float, clipped: float | None, plan: Plan) -> TensorReport:
    planned = plan.tensors.get(tensor)
    if planned is None or planned.group not in plan.ranges:
        return TensorReport(tensor, op, sqnr_db, clipped=clipped)
    span, params = plan.ranges[planned.group], plan.params[planned.group]
    scheme = f"{params.scheme.dtype.name} scale {float(params.scale):.6g} zero point {int(params.zero_point)}"
    return TensorReport(tensor, op, sqnr_db, span.low, span.high, clipped, scheme, span.method)
