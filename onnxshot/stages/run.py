"""One quantization under way, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.calibration.batches import refuse_copies
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, open_data, split
from onnxshot.calibration.statistics_file import load_statistics
from onnxshot.calibration.stats import TensorStats
from onnxshot.delivery import artifacts
from onnxshot.delivery.record import Record, precisions, record, stamp
from onnxshot.delivery.write_results import RANDOM_KEY, input_bytes, source_name
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.execution import candidate_race
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.execution.statistics_source import RunStatistics, from_data, from_file, open_calib
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import Frozen
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import FROZEN, INFERRED, SAMPLE, Sizes, tensor_sizes
from onnxshot.graph.save import Draft, stored_size
from onnxshot.passes.freeze_shapes import FreezeShapes
from onnxshot.passes.keep_integer_weights import KeepIntegerWeights, kept_integer_notes
from onnxshot.passes.widen_half import WidenHalf
from onnxshot.planning.finite_weights import refuse_not_finite
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.planning.node_mode import is_embedding, is_weighted
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.planning.precision16_ops import FP16
from onnxshot.planning.scales import Evidence
from onnxshot.planning.schemes import schemes
from onnxshot.planning.trained_scales import NOTHING, Trained, notes
from onnxshot.precision16.bfloat16_emulation import computes_bfloat16
from onnxshot.precision16.convert import halve, refuse_half
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.improve_plan import Improver
from onnxshot.recovery.lstm_trial import settle
from onnxshot.report.report import Report
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.rewriting.model_inputs import frozen_sizes, input_specs
from onnxshot.rewriting.prepare import half_notes, narrow, prepare, widen
from onnxshot.rewriting.undo_quantization import to_float
from onnxshot.rewriting.undo_unused_int8 import undo_unused_int8
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.settings import Settings
from onnxshot.stages.alternatives import Shortfall
from onnxshot.stages.prove import QuantizedProof
from onnxshot.targets import target_named
from onnxshot.targets.base import Target
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof, report_rows
from onnxshot.verification.reference import Reference, reference_of

_NAMED = 4  # operators in a note
_GROWTH_BYTES, _GROWTH = 1 << 14, 0.03
"""By how much a file may be larger than the input: names and scales take some bytes. Its record does not count."""
_SEVERAL = 2  # 8 bits for 4 is what was asked for; more is none of a file that is to become smaller


@dataclass(slots=True)
class Run:
    """One quantization under way; its methods are the stages."""

    source: str | Path | ModelProto
    recipe: Recipe
    settings: Settings
    given: str | Path | None = None
    started: float = field(default_factory=time.perf_counter)
    target: Target = field(init=False)
    model: Model = field(init=False)
    plan: Plan = field(init=False)
    report: Report = field(init=False)
    frozen: Frozen = field(init=False)
    decided: Recipe = field(init=False)  # the recipe with what was tried and found to be best
    float_model: ModelProto | None = field(init=False, default=None)  # that the plan is made for
    reference: Reference | None = field(init=False, default=None)  # what was given, once there are samples
    requantized: bool = field(init=False, default=False)  # pairs of Q and DQ were taken out of the model
    source_hash: str = field(init=False)  # of the model as it was given
    widened: WidenHalf = field(init=False, default_factory=WidenHalf)  # what was computed in 16 bits
    sampled: bool = field(init=False, default=False)
    gathered: RunStatistics | None = field(init=False, default=None)
    held_out: list[int] = field(init=False, default_factory=list)  # samples that nothing is learned from; empty: all
    improver: Improver | None = field(init=False, default=None)
    trained: Trained = field(init=False, default=NOTHING)
    judged: artifacts.Judged | None = field(init=False, default=None)  # what the result was held against
    evidence: Evidence = field(init=False, default_factory=lambda: Evidence({}))  # what the plan was made by

    def __post_init__(self) -> None:
        self.target = target_named(self.recipe.target)
        self.decided = self.recipe
        schemes(self.target, self.recipe)  # what the target cannot run is refused before any work
        refuse_half(self.target, self.recipe)
        self.model = load_model(self.source)
        self.source_hash = model_hash(self.model)
        self.frozen = frozen_sizes(self.model, self.recipe.batch, self.recipe.shapes)
        self.report = Report(source_name(self.source), self.recipe.to_dict())
        self.report.input_bytes = input_bytes(self.source, self.model)
        self.requantized = bool(already_quantized(self.model))
        if self.recipe.quantizes or (self.recipe.half == FP16.name and computes_bfloat16(self.source)):
            self.widened = widen(self.model)
            self.report.notes += half_notes(self.widened.computed, kept=self.target.keeps_half)
        if self.recipe.quantizes or self.settings.requantize:  # floats of 16 bits go around what is quantized
            self.trained = to_float(self.model, complete=self.recipe.complete, requantize=self.settings.requantize)
        with self.report.timed("normalize"):
            prepare(
                self.model, self.target, self.recipe, keep_overridable=self.settings.keep_overridable,
                half=self.keeps_half,
            )  # fmt: skip

    def planned(self, recipe: Recipe | None = None, evidence: Evidence | None = None) -> Plan:
        """The plan of a recipe, by default the run's own, for the model as it is now; with scales by `evidence`."""
        return make_plan(self.model, self.target, recipe or self.recipe, evidence, self.trained)

    @property
    def keeps_half(self) -> bool:
        """Whether the result computes in 16 bits what the input does."""
        return self.target.keeps_half and self.recipe.quantizes and bool(self.widened.computed)

    @property
    def _small(self) -> bool:
        """Whether the model is within the limits of the proof."""
        return self.model.weight_bytes() < proof.MAX_BYTES and len(self.model.graph.nodes) < proof.MAX_NODES

    def not_larger(self, data: Dataset | None) -> Run:
        """The run to deliver: where its file would be larger than the input, one that leaves the model in float.

        Not where nodes were asked for by name, or trained scales are kept.

        Raises UsageError where a model that is quantized already would be several times larger.
        """
        size, given = stored_size(self.model), self.report.input_bytes
        if self.recipe.include or not self.recipe.quantizes or size <= given + max(_GROWTH_BYTES, given * _GROWTH):
            return self
        if not self.trained:
            recipe = replace(self.recipe, exclude=("*",))
            other = Run(self.source, recipe, self.settings, self.given)
            other.sampled = self.sampled
            other.report.notes += data.notes if data is not None else []
            other.rewrite(data)
            if stored_size(other.model) < size:
                told = f"nothing was quantized: the file would take {size} bytes, {size - given} more than the input"
                other.report.notes.append(told)
                return other
        if self.requantized and not self.recipe.exclude and size > _SEVERAL * given + _GROWTH_BYTES:
            raise UsageError(
                f"the file would take {size} bytes, the input takes {given}: its weights came in fewer bits",
                "keep the input, which is quantized already, or name the nodes to quantize with --include",
            )
        self.report.notes.append(f"the file is larger than the input by {size - given} bytes")
        return self

    def _keep_stored(self) -> None:
        """Write weights that stay float in the integers that they came in, and tell what became of trained scales."""
        if not self.recipe.complete:
            return
        keep = KeepIntegerWeights(self.trained)
        if self.target.stores_weights:
            keep.run(self.model)
        self.plan.kept.fates.update(dict.fromkeys(keep.names, ""))
        self.report.notes += [*notes(self.trained, self.plan), *kept_integer_notes(keep.names)]

    # ------------------------------------------------------------------ stages

    def open(self, calib: Any, preset: str | Preset | None) -> Dataset | None:
        """Open the calibration data; None where there is none and none is needed."""
        if self.given is not None:
            load_statistics(self.given)  # what is wrong with the file is told, also where nothing is asked of it later
        if calib is None:
            needed = self.given is None and self.recipe.mode == "static"
            unknown = self.planned().observe if needed else ()
            if unknown and self.trained:
                what = f"{len(unknown)} tensors came without a scale, such as {unknown[0]!r}"
                raise CalibrationError(what, "give --calib DATA to complete them, or --exclude their ops")
            if unknown:
                open_data(None, input_specs(self.model))  # raises, and says what --calib takes
            return None
        data = open_calib(calib, self.model, preset, self.settings, self.frozen)
        if self.frozen:  # told now, and not once the work is done
            refuse_copies(data, self.frozen.inputs, len(split(len(data))[1]))
        self.report.notes += data.notes
        self.sampled = True
        return data

    def rewrite(self, data: Dataset | None) -> None:
        """Plan, calibrate, plan again with scales, and change the graph."""
        self.refer(data)
        self._settle_recurrent(data)
        self.plan = self.planned()
        refuse_not_finite(self.model, self.plan)
        if self.plan.observe and (data is not None or self.given is not None):
            with self.report.timed("calibrate"):
                stats = self.statistics(data)
            self.evidence = self.improve_plan(stats, data)
        elif self.trained:
            self.plan = self.planned(evidence=Evidence({}))  # every scale is known
        if self._small and (self.settings.verify or self.recipe.effort != "fast"):
            self.float_model = self.model.to_proto()
        self.report.notes += [*self.plan.notes, *self.model.notes]
        sizes = self._sizes(data)
        work = sizes.work(self.model)
        self.report.sizes = sizes.report_entry(work)
        graph = report_rows.graph_rows(self.model, work)
        with self.report.timed("rewrite"):
            refused = apply_plan(self.model, self.plan, self.recipe)
        if self.float_model is not None:
            with self.report.timed("repair"):
                done = self.repair(self.float_model, self.model, self.plan)
            self.report.notes += [done] if done else []
        refused += finish(self.model, self.target, self.recipe)
        with self.report.timed("mend"):
            self.plan = undo_unused_int8(self.model, self.plan, self.target, self.float_model)
        self._keep_stored()
        if self.keeps_half:
            narrow(self.model, self.widened)
        if self.recipe.half is not None:
            with self.report.timed("half"):
                self._halve(data)
        FreezeShapes(self.frozen).run(self.model)
        self.report.skips = [*self.plan.skips, *refused]
        self.report.graph = report_rows.with_plan(graph, self.plan)
        if self.recipe.quantizes and not self.plan.stored and all(n.how == FLOAT for n in self.plan.nodes):
            self.report.notes.append(self._why_nothing())
        self._stamp(data)

    def _why_nothing(self) -> str:
        """Why a model came out as it was: it may have nothing to quantize, such as one of trees."""
        nodes = [node for _, node in self.model.walk()]
        if any(is_weighted(node) or is_embedding(node) for node in nodes):
            return "nothing was quantized: onnxshot inspect MODEL says why, node by node"
        ops = list(dict.fromkeys(node.op for node in nodes))
        named = ", ".join(ops[:_NAMED]) + (f" and {len(ops) - _NAMED} more" if len(ops) > _NAMED else "")
        return f"there is nothing to quantize: no layer of the model multiplies with a weight; its operators: {named}"

    def _sizes(self, data: Dataset | None) -> Sizes:
        """What the work is counted at: the first sample, else the frozen sizes."""
        if data is not None and len(data):
            return sizes_on(self.model, data[0].feed, threads=self.settings.threads)
        fixed = {name: tuple(d if isinstance(d, int) else 1 for d in dims) for name, dims in self.frozen.inputs.items()}
        free = any(not isinstance(d, int) for dims in self.frozen.inputs.values() for d in dims)
        found = tensor_sizes(self.model, fixed)
        return replace(found, source=INFERRED if free else FROZEN) if found.source == SAMPLE else found

    def _halve(self, data: Dataset | None) -> None:
        """Put what is float32 now into 16 bits."""
        found = halve(self.model, self.plan, self.target, self.recipe, data, self.settings)
        self.plan = found.plan
        self.report.notes += found.notes
        if data is not None and self.gathered is None:
            self.held_out = split(len(data))[1]
            self._tell_samples(data, found.samples, len(data) - len(self.held_out), found.samples)

    def _settle_recurrent(self, data: Dataset | None) -> None:
        """Let the recipe say what was found of LSTMs in int8, so that a record of it needs no trial."""
        reference = None if self.reference is None else self.reference.model
        with self.report.timed("try LSTMs"):
            found = settle(self.model, self.planned(), self.recipe, reference, data, self.settings)
        if found is None:
            return
        self.report.notes.append(found.note)
        if found.portable:
            exclude = (*self.recipe.exclude, *found.left)
            self.recipe = self.decided = replace(self.recipe, portable_ops=True, exclude=exclude)
            self.report.recipe = self.recipe.to_dict()

    def improve_plan(self, stats: Mapping[str, TensorStats], data: Dataset | None) -> Evidence:
        """Make the plan, and where there is data the best that the effort allows; what is known of its tensors."""
        evidence = Evidence(stats)
        self.plan = self.planned(evidence=evidence)
        if data is None or self.gathered is None or self.model.weight_bytes() > candidate_race.MAX_BYTES:
            return evidence
        if self.reference is None:
            return evidence
        if schemes(self.target, self.recipe)[0].dtype.floating:
            return evidence  # nothing that is tried was seen to bring float8 anything
        self.improver = Improver(
            self.model, self.reference.model, self.target, self.recipe, self.settings, self.trained, data,
            self.gathered, self.report,
        )  # fmt: skip
        best = self.improver.best(self.plan, evidence)
        self.model, self.plan = best.model, best.plan
        clip = self.recipe.clip if self.recipe.clip is not None else best.clips
        smooth = best.smoothed or (self.recipe.smooth and None)  # False would leave out the fixed share as well
        self.decided = replace(self.recipe, grid=best.gridded, equalize=best.equalized, smooth=smooth, clip=clip)
        return best.evidence

    def repair(self, teacher: ModelProto, model: Model, plan: Plan) -> str:
        """Repair a quantized model where there is data to learn from; what was done, in words."""
        return self.improver.repair(teacher, model, plan) if self.improver is not None else ""

    def refer(self, data: Dataset | None) -> None:
        """Find what results are held against, and hold the normalized model against it; before anything is learned.

        Over the limits of the proof nothing is run. Raises ModelError where normalizing has changed outputs.
        """
        if self.model.weight_bytes() >= proof.MAX_BYTES:
            self.reference = Reference(Path(self.source)) if not isinstance(self.source, ModelProto) else None
            return
        check = self.settings.verify and not self.requantized and self._small
        with self.report.timed("normalize"):
            self.reference = reference_of(self.source, self.model, data, check=check, threads=self.settings.threads)
        self.report.notes += [self.reference.note] if self.reference.note else []

    def statistics(self, data: Dataset | None) -> Mapping[str, TensorStats]:
        """Statistics of every tensor the plan watches."""
        if self.given is not None:
            found = from_file(self.given, self.model, self.plan, data)
        else:
            assert data is not None
            found = from_data(self.model, self.plan, self.recipe, data, self.settings)
        self.gathered = found
        self.report.notes += found.notes
        self.held_out = found.held_out
        used = len(found.statistics.samples) if data is None else len(found.calibrated)
        self._tell_samples(data, used, found.statistics.considered, found.inferences)
        return found.statistics.tensors

    def _tell_samples(self, data: Dataset | None, used: int, considered: int, inferences: int) -> None:
        self.report.samples = {
            "calibration": used,
            "considered": considered,
            "held_out": len(self.held_out),
            "inferences": inferences,
            "source": str(self.given) if data is None else data.source,
            "random": data is not None and data.random,
        }

    def _stamp(self, data: Dataset | None) -> None:
        stamp(self.model, self.record(self.recipe, self.plan))
        if data is not None and data.random:
            self.model.set_metadata(RANDOM_KEY, "true")
            self.report.notes.append("calibrated on random data: scales are guesses, do not deploy this")

    def record(self, recipe: Recipe, plan: Plan) -> Record:
        """What makes this run's result, or that of another recipe and its plan, again."""
        sampled = self.sampled or self.given is not None
        return record(recipe, self.source_hash, self.settings, precisions(plan), sampled=sampled)

    def prove(self, written: Draft, data: Dataset | None, target_emitted: bool = False) -> None:
        """Read the written file back and hold it against the float model."""
        # With statistics of a file there are no samples to make another model of.
        alone = self._for_ort_alone if self.given is None else None
        proof_of = QuantizedProof(
            self.report, self.source, self.reference, self.float_model, self.model, self.plan, self.recipe,
            self.target, self.settings, self.frozen, self.held_out, self.evidence.stats, alone, target_emitted,
            half=self.keeps_half, runs_nowhere=self.keeps_half and self.widened.runs_nowhere,
        )  # fmt: skip
        self.judged = proof_of.prove(written.path, data)
        if data is not None and self.judged is not None and self.float_model is not None and alone is not None:
            with self.report.timed("advise"):
                self.report.tried = self._shortfall(self.float_model, self.judged, data, written.size_bytes)

    def _shortfall(
        self, float_model: ModelProto, judged: artifacts.Judged, data: Dataset, written_bytes: int
    ) -> list[dict[str, Any]]:
        """What else was measured, where the result falls short."""

        def make(recipe: Recipe) -> tuple[Model, Report]:
            run = Run(self.source, recipe, replace(self.settings, progress=None))
            run.rewrite(data)
            return run.model, run.report

        return Shortfall(
            self.report, float_model, self.model, self.plan, self.recipe, self.decided, self.target, self.settings,
            self.evidence, self.trained, judged, make, written_bytes, self.frozen,
        ).tried(data)  # fmt: skip

    def _for_ort_alone(self, data: Dataset) -> Model:
        """What the same recipe makes of the model for ONNX Runtime."""
        recipe = replace(self.recipe, target=ORT.name, activation_type=None, weight_type=None)
        run = Run(self.source, recipe, self.settings)
        run.rewrite(data)
        return run.model
