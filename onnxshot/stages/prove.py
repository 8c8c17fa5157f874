"""The proof of a quantized model: read its file back, compare it tensor by tensor with the float model, and time it.

Where the result falls short and another recipe makes a better one, that takes its place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.batches import batched
from onnxshot.calibration.readers import Dataset
from onnxshot.delivery import portability
from onnxshot.delivery.artifacts import Judged
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft
from onnxshot.planning.make_plan import already_quantized
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.precision16.bfloat16_emulation import emulated_if_bf16, in_float32
from onnxshot.report.accuracy_findings import is_inaccurate
from onnxshot.report.values import TensorReport
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_versions import needs
from onnxshot.stages.alternatives import Alternatives
from onnxshot.stages.make_quantized import Quantized, make_quantized
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import prepare_model
from onnxshot.targets import RUNTIMES
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof, report_rows
from onnxshot.verification.compare_models import Comparison, compare
from onnxshot.verification.float_weights import float_weights
from onnxshot.verification.io_contract import reload_check
from onnxshot.verification.reference import Reference
from onnxshot.verification.weight_sizes import more_bits_than_asked, record_weights
from onnxshot.wording import worded

_NO_SEARCH = "nothing better was searched for, as ranges come from [[stats]]: leave it out, and give [[calib]] alone"
_RECOMPUTED = 64 << 20  # bytes of weights up to which they are counted in the model in memory


def prove_quantized(
    made: Quantized, written: Draft, *, target_emitted: bool = False
) -> tuple[Quantized, Judged | None]:
    """Read a written file back, compare it with the float model, time it, and go on where it falls short.

    A better result that is found then is written in place of the file. The figures go into its report.

    Args:
        made: the quantized model.
        written: its file, not published yet.
        target_emitted: an artifact in the target's own format is made as well, and measured there.

    Returns:
        The result to deliver, and what its file was compared with; None where nothing was compared.

    Raises:
        ModelError: the file does not load or run, is not the model in memory, or has other inputs or outputs.
    """
    judged = _proven(made, written, target_emitted)
    if made.samples.data is None or made.samples.stats is not None or judged is None:  # others take samples
        unsought = made.samples.stats is not None and made.prepared.settings.search_seconds != 0
        if judged is not None and unsought and is_inaccurate(asdict(made.report)):
            made.report.notes.append(worded(_NO_SEARCH))
        return made, judged
    with made.report.timed("search"):
        better = Alternatives(made, judged, written.size_bytes).better()
    if better is None:
        return made, judged
    better.report.timings["search"] = made.report.timings["search"]
    better.model.forget_inferred()
    written.rewrite(better.model)
    judged = _proven(better, written, target_emitted)
    better.report.notes = list(dict.fromkeys(better.report.notes))  # some were made when it was tried
    return better, judged


def _proven(made: Quantized, written: Draft, target_emitted: bool) -> Judged | None:
    source = made.prepared.source
    given = made.float_model if isinstance(source, ModelProto) else load_model(source)
    record_weights(made.report, given, made.model, written.size_bytes)
    made.report.notes += more_bits_than_asked(made.report)
    return _Proof(made, target_emitted).prove(written.path)


@dataclass(frozen=True, slots=True)
class _Proof:
    """A quantized model under proof."""

    made: Quantized
    target_emitted: bool

    @property
    def can_make_others(self) -> bool:
        """Whether other models can be made for comparison: that takes samples, not only statistics of them."""
        return self.made.samples.data is not None and self.made.samples.stats is None

    def prove(self, written: Path) -> Judged | None:
        """Read the file back, and compare it where there is something to compare it on.

        Raises:
            ModelError: the file does not load or run, is not the model in memory, or has other inputs or outputs.
        """
        made, report, prepared = self.made, self.made.report, self.made.prepared
        report.float_weights = float_weights(made.model, made.plan)
        read_back = not prepared.settings.verify or made.model.weight_bytes() > _RECOMPUTED
        # What is called done was read back at least; the weights of a large model are computed at every read.
        report.sparsity = proof.sparsity(load_model(written) if read_back else made.model)
        report.onnxruntime = needs(made.model) if prepared.target.runs_here else None
        if prepared.fixed_shapes:
            proof.runs_frozen(written, made.model, prepared.source)
        if not prepared.settings.verify:
            data = made.samples.data
            if data is not None and not data.random:  # it was there to compare on, and may not have been used
                report.samples = {"source": data.source, "random": False, **report.samples}
            return None
        proof.keeps_contract(prepared.source, written, prepared.fixed_shapes)
        in_bfloat16 = prepared.keeps_half and prepared.widened.runs_nowhere  # ONNX Runtime lacks it on CPUs
        with emulated_if_bf16(written, prepared.recipe.half) as one, in_float32(one, wanted=in_bfloat16) as runs:
            return self._compare(written, runs)

    def _compare(self, written: Path, runs: Path) -> Judged | None:
        """Compare the file, as ONNX Runtime runs it, with the float model, and time it where it is deployed so."""
        made, report, prepared = self.made, self.made.report, self.made.prepared
        data, reference, float_model = made.samples.data, made.reference, made.float_model
        if data is None and reference is not None:
            data = proof.random_data(reference.model, made.model)
        if data is None or reference is None:
            how = "loaded in ONNX Runtime" if proof.loads(runs, prepared.source) else "not loaded"
            report.notes.append(f"not compared with the float model, {how}: no data that it runs on")
            return None
        held_out = data.subset(made.held_out or range(len(data)))
        if prepared.fixed_shapes:
            held_out = batched(held_out, prepared.fixed_shapes.inputs)
        if "calibration" not in report.samples:  # nothing was learned from any of them
            report.samples |= {"held_out": len(held_out), "source": data.source, "random": data.random}
        judged = Judged(reference.model, held_out)
        with report.timed("verify"):
            opened = OpenModels([p for p in (reference.model, runs) if isinstance(p, Path)], prepared.settings.threads)
            tokens = self._measure(reference, float_model, written, runs, held_out, opened).tokens
        with report.timed("decode"):
            here = prepared.target.runs_here
            proof.record_decoding(report, tokens, reference.model, runs, held_out, prepared.settings, timed=here)
        evidence = made.final.evidence
        report.worst = report_rows.with_histograms(report.worst, made.plan, {} if evidence is None else evidence.stats)
        if not prepared.target.runs_here:
            how = "" if runs is written else ", which has no bfloat16, in float32"
            how += " rounded to it at every step" if prepared.recipe.half == "bf16" else ""
            self._prove_in_target(written, judged, how)
            return judged
        with report.timed("bench"):
            proof.record_latency(report, reference.model, written, held_out, prepared.settings, opened)
        if prepared.target.everywhere:
            self._prove_everywhere(written, judged)
        return judged

    def _measure(
        self, reference: Reference, float_model: Model, written: Path, runs: Path, held_out: Dataset,
        opened: OpenModels,
    ) -> Comparison:
        """Measure the accuracy of every output and tensor, and what ran in int8.

        Args:
            reference: what outputs are compared with.
            float_model: what tensors inside are compared with: the plan was made for it.
            written: the file.
            runs: what ONNX Runtime runs for that file; as a rule the file itself.
            held_out: the samples.
            opened: where sessions of the files are kept.
        """
        made, report, prepared = self.made, self.made.report, self.made.prepared
        threads, first = prepared.settings.threads, held_out[0]
        reload_check(made.model, written, first.feed, run=runs is written)
        found = compare(
            reference.model, runs, held_out, tensors=list(made.plan.tensors) or None, threads=threads,
            inside=LeanModel.of(float_model), sizes=prepared.fixed_shapes, opened=opened,
        )  # fmt: skip
        proof.record_comparison(report, found, random=held_out.random)
        rows = ((row, _row(row.tensor, row.op, row.sqnr_db, row.clipped, made.plan)) for row in found.tensors)
        report.worst = [replace(told, depth=row.depth) for row, told in rows]
        report.notes += _refused_methods(made.plan)
        # ONNX Runtime fuses nothing in 16 bits: the float32 form of the file shows what runs in int8.
        with in_float32(runs, wanted=prepared.keeps_half and runs is written) as counted:
            found_int8 = executed(counted, sample=first.feed, threads=threads)
        integers = {node.label for node in already_quantized(made.model)}  # as they came
        proof.record_execution(report, found_int8, made.plan.labels(FLOAT) - integers)
        return found

    def _prove_in_target(self, written: Path, judged: Judged, how: str) -> None:
        """Measure the file in the runtime that it is for, where that is installed and no artifact is measured in it."""
        report, name = self.made.report, self.made.prepared.target.name
        if self.target_emitted or name not in RUNTIMES:
            report.notes.append(f"checked in ONNX Runtime{how}, not in {name}; not timed")
            return
        with report.timed("bench"):
            (row,) = report.runtimes = portability.rows(written, judged, self.made.prepared.settings, (name,))
        if "missing" in row or "refused" in row:
            why = row.get("missing") or f"it does not take it: {row['refused']}"
            report.notes.append(f"checked in ONNX Runtime{how}, not in {name}; not timed: {why}")
        else:
            report.notes += portability.in_words(report.runtimes, {})

    def _prove_everywhere(self, written: Path, judged: Judged) -> None:
        """Run the file in every runtime that is installed, and compare it with one for ONNX Runtime alone."""
        made, report, settings = self.made, self.made.report, self.made.prepared.settings
        with report.timed("everywhere"):
            if self.can_make_others:
                alone = _for_onnxruntime_alone(made)
                report.single = portability.compare_single_target(alone, ORT.name, written, judged, settings)
            report.runtimes = portability.rows(written, judged, settings)
        report.notes += portability.in_words(report.runtimes, report.single)


def _for_onnxruntime_alone(made: Quantized) -> Model:
    """The model that the same recipe makes for ONNX Runtime alone."""
    prepared = made.prepared
    recipe = replace(prepared.recipe, target=ORT.name, activation_type=None, weight_type=None)
    other = prepare_model(prepared.source, recipe, prepared.settings)
    return make_quantized(other, Samples(made.samples.data, trial=True), made.reference).model


def _refused_methods(plan: Plan) -> list[str]:
    """Return one note on the tensors whose range is not chosen by the method that was asked for."""
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
