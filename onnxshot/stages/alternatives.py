"""Options that may help where a result falls short: they are measured, so that the report can advise them.

- Accuracy below the floor: put the few nodes back to float that help most.
- Recurrent layers in float, a file larger than the input, or a graph that is faster in float: quantize weights alone.
- A result that is slower than the input: quantize products dynamically, without calibration.

Every option is judged by the same rules as the result. One that quantizes nothing, or makes a file larger than the
input, is left out. Trials are bounded in number and in time, and change nothing that is written. The rows are
`Report.tried`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxshot import memory
from onnxshot.calibration.readers import Dataset
from onnxshot.delivery.artifacts import Judged
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.execution.candidate_race import Judge, candidate_of
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Constant, Model, weights
from onnxshot.graph.copies import copy_of
from onnxshot.graph.ops import op_of
from onnxshot.graph.save import write
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.plan import DYNAMIC, FLOAT, OPERATOR, STATIC, WEIGHTS
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import PRODUCTS
from onnxshot.recipes.command_line import options_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.float_fallback import Units, smallest_fallback
from onnxshot.report.advice import BAD, FLOOR_DB, is_slower, level_of
from onnxshot.report.findings import is_inaccurate
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.rewriting.apply_plan import apply_plan
from onnxshot.runtimes.ort_bench import CLEAR, NOISE, bench
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import stored_bytes
from onnxshot.stages.make_quantized import Quantized, make_quantized
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared, prepare_model
from onnxshot.stages.settle_forms import AUTO, settle_forms
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference

RECURRENT = ("LSTM", "GRU", "RNN")
_HARDLY_FASTER = 1.2  # times as fast as the input
_SHARE = 0.25  # of the result's weight bytes: float recurrent layers below it are not what makes the file large
_TRIED_ON = 4  # samples
_HALF_DB = 6.0  # half of the error, as an amplitude
_NAMED = 6  # nodes that advice names at most; `onnxshot tune` is for longer lists
_SECONDS = 30.0  # after this no trial begins
_TO_MEASURE = 8.0  # seconds of those that the search for nodes leaves for measuring what it finds
_SHORTEST_MS = 0.1  # shorter runs are mostly overhead and are not compared
_CLEARLY = 1.25  # times as fast: then int8 is not timed any longer against the float graph
_FUSED = ("Relu", "Clip")


class _OutOfTime(Exception):
    """The search for nodes takes too long. Raised between two trials."""


@dataclass(frozen=True, slots=True)
class Alternatives:
    """What other recipes make of the same model.

    Attributes:
        made: the result, with the figures of its proof in its report.
        judged: the given model and the samples that the result was compared on.
        written_bytes: size of the result's file.
    """

    made: Quantized
    judged: Judged
    written_bytes: int
    _deadline: float = field(init=False, default_factory=lambda: time.perf_counter() + _SECONDS)

    def tried(self) -> list[dict[str, Any]]:
        """Measure the options that may help, and return a row for each; empty where nothing falls short."""
        made, data, report = self.made, self.made.samples.data, self.made.report
        if self._recipe.precision != "int8" or data is None or data.random:
            return []
        if not made.prepared.target.runs_here:
            return []
        rows = []
        size = self._float_model.weight_bytes()
        in_parts = size > memory.part_bytes()
        found = [*self._recurrent(), *self._quicker(), *self._smaller()]
        found += self._faster_in_float() if not in_parts else ()
        options = {options_of(recipe): recipe for recipe in found}
        inaccurate = is_inaccurate(asdict(report)) and report.sqnr_db is not None  # the search needs float outputs
        if in_parts and (options or inaccurate):
            listed = [*options, *(["nodes in float"] if inaccurate else [])]
            why = f"the model has {size / 1e6:.0f} MB of weights and runs in parts"
            report.notes.append(f"what may be better was not measured, as {why}: {', '.join(listed)}")
            return []
        for recipe in options.values():
            if time.perf_counter() < self._deadline:
                rows += list(self._measured(recipe))
        if inaccurate:
            with contextlib.suppress(OnnxshotError, _OutOfTime):
                rows += self._floats(data)
        return rows

    @property
    def _prepared(self) -> Prepared:
        return self.made.prepared

    @property
    def _recipe(self) -> Recipe:
        return self.made.prepared.recipe

    @property
    def _threads(self) -> int:
        return self.made.prepared.settings.threads

    @property
    def _float_model(self) -> Model:
        return self.made.float_model

    def _in_mode(self, mode: str) -> Iterator[Recipe]:
        """The recipe in another mode; nothing if its rules for single layers cannot be combined with that mode."""
        with contextlib.suppress(UsageError):
            yield replace(self._recipe, mode=mode)

    def _quicker(self) -> Iterator[Recipe]:
        """Quantize products at run time, where the result is slower than the input, or hardly faster.

        Of products in blocks, those that many rows reach.
        """
        plan, speedup = self.made.plan, self.made.report.speedup
        if speedup is None or speedup >= _HARDLY_FASTER:
            return
        if self._recipe.mode == STATIC and any(n.how == STATIC and n.op in PRODUCTS for n in plan.nodes):
            yield from self._in_mode(DYNAMIC)
        in_blocks = (n for n in plan.nodes if n.how == WEIGHTS)
        if self._recipe.mode == WEIGHTS and any(plan.weights[n.node].form == OPERATOR for n in in_blocks):
            for recipe in self._in_mode(AUTO):
                settled, _ = settle_forms(
                    replace(self._prepared, model=self._float_model, recipe=recipe), self.made.samples.data
                )
                if settled.recipe.mode != WEIGHTS:  # else nothing would change
                    yield recipe

    def _faster_in_float(self) -> Iterator[Recipe]:
        """Quantize weights alone, where the normalized graph is faster in float than in int8; a note says so.

        Whatever speed the result gains over the input then comes from normalizing.
        """
        quantized = any(n.how != FLOAT for n in self.made.plan.nodes)
        if self.made.report.speedup is None or self._recipe.mode != STATIC or not quantized:
            return
        feeds = [self.judged.samples[i].feed for i in range(min(len(self.judged.samples), _TRIED_ON))]
        with scratch() as folder:
            plain, int8 = folder / "float.onnx", folder / "int8.onnx"
            write(self._float_model, plain)
            write(self.made.model, int8)
            try:
                plain_run, ours = bench(
                    [plain, int8], feeds, threads=self._threads, seconds=self._prepared.settings.bench_seconds,
                    precision=NOISE, clear=CLEAR, faster=_CLEARLY,
                )  # fmt: skip
            except OnnxshotError:
                return
        if ours.sure and is_slower(ours.ratio) and plain_run.median_ms >= _SHORTEST_MS:
            self.made.report.notes.append(
                f"the same graph in float, normalized but not quantized, is {1 / ours.ratio:.2f}x as fast as this file "
                "here: int8 brings no speed, --mode weights stores its weights in 8 bits alone"
            )
            yield from self._in_mode("weights")

    def _smaller(self) -> Iterator[Recipe]:
        """Quantize weights alone, where the file is larger than the input."""
        if self.written_bytes > self.made.report.input_bytes > 0 and self._recipe.mode != "weights":
            yield from self._in_mode("weights")

    def _recurrent(self) -> Iterator[Recipe]:
        """Quantize weights alone, where float weights of recurrent layers are a large part of the file."""
        floats = {n.node for n in self.made.plan.nodes if n.how == FLOAT and n.op in RECURRENT}
        nodes = [node for _, node in self.made.model.walk() if node.label in floats]
        size = sum(weights.size_bytes(t) for node in nodes for t in node.inputs[1:3] if isinstance(t, Constant))
        if not nodes or size < _SHARE * self.made.model.weight_bytes():
            return
        if self._recipe.mode != "weights":
            yield from self._in_mode("weights")

    def _floats(self, data: Dataset) -> list[dict[str, Any]]:
        """Find the few nodes whose return to float lifts the outputs above the floor, and return rows of them.

        The search runs on a few samples. Where its result is still below the floor on all samples, it runs once more
        with a higher floor.
        """
        rows: list[dict[str, Any]] = []
        for wanted in (self._wanted_db, self._wanted_db + _HALF_DB):
            if rows and rows[-1]["level"] != BAD:
                break
            units = self._units(data, wanted)
            if not units or any(row["units"] == units for row in rows):
                break
            recipe = replace(self._recipe, exclude=(*self._recipe.exclude, *units))
            rows += [{**row, "units": units} for row in self._measured(recipe)]
        return [{key: value for key, value in row.items() if key != "units"} for row in rows]

    def _units(self, data: Dataset, wanted: float) -> list[str]:
        """Patterns of nodes that bring the SQNR to `wanted` dB, in graph order; empty if there are none or too many."""
        base = copy_of(self._float_model)
        patterns, node_of = exact_patterns(base), {node.label: node for _, node in base.walk()}
        order = []
        for planned in self.made.plan.nodes:
            node = node_of.get(planned.node)
            computes = node is not None and not (node.op in _FUSED or op_of(node).keeps_range)
            if planned.how != FLOAT and computes and planned.node in patterns:
                order.append(patterns[planned.node])
        if not order:
            return []
        step = max(1, len(data) // _TRIED_ON)
        samples = [data[i] for i in range(0, len(data), step)][:_TRIED_ON]
        judge = Judge(self.judged.reference, samples, self._threads)

        def measure(sets: Iterable[Units]) -> Iterator[float]:
            made = (candidate_of(self._with_floats(units)) for units in sets)
            for one in judge.measure(made, range(len(samples))):
                if time.perf_counter() > self._deadline - _TO_MEASURE:
                    raise _OutOfTime
                yield one.worst_db

        units = smallest_fallback(order, measure, wanted)
        return [unit for unit in order if unit in units] if len(units) <= _NAMED else []

    @property
    def _low(self) -> list[str]:
        """Names of the outputs that are below the floor by themselves."""
        return [name for name, db in self.made.report.output_sqnr_db.items() if level_of(db) == BAD]

    @property
    def _wanted_db(self) -> float:
        """The floor in dB; for a result above it whose outputs disagree, half of its error: 6 dB more."""
        now = self.made.report.sqnr_db
        return FLOOR_DB if self._low or now is None or not now >= FLOOR_DB else now + _HALF_DB

    def _with_floats(self, units: Units) -> Model:
        """The quantized model with these units in float, without repairs."""
        model, final = copy_of(self._float_model), self.made.final
        recipe = replace(final.decided, exclude=(*final.decided.exclude, *sorted(units)))
        evidence = Evidence({}) if final.evidence is None else final.evidence
        plan = make_plan(model, self._prepared.target, recipe, evidence, self._prepared.trained)
        apply_plan(model, plan, self._recipe)
        return model

    def _measured(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """Measure what a recipe makes as the result was measured, and yield a row of its figures and its verdict.

        Yields nothing where it cannot be made, quantizes nothing, or is larger than the input.
        """
        with scratch() as folder:
            path, reference, samples = folder / "other.onnx", self.judged.reference, self.judged.samples
            try:
                settings = replace(self._prepared.settings, progress=None)
                prepared = prepare_model(self._prepared.source, recipe, settings)
                if not _plans_any(prepared):
                    return
                other = make_quantized(prepared, Samples(self.made.samples.data, trial=True), self.made.reference)
                report = other.report
                write(other.model, path)
                size, given = stored_bytes(path), self.made.report.input_bytes
                if not _quantizes(report) or (given and size > given):
                    return
                found = compare(reference, path, samples, threads=self._threads, sizes=self._prepared.fixed_shapes)
                proof.record_comparison(report, found, random=False)
                ran = executed(path, sample=samples[0].feed, threads=self._threads)
                if recipe.mode != "weights" and ran.total_macs and not ran.share:
                    return
                proof.record_execution(report, ran)
                source = Reference(reference).at(folder / "float.onnx")
                proof.record_latency(report, source, path, samples, self._prepared.settings)
            except OnnxshotError:
                return
        report.input_bytes = given
        report.outputs = [Artifact(path.name, self._prepared.target.name, "onnx", size)]
        verdict = report.verdict
        yield {
            "options": options_of(recipe, self._recipe), "sqnr_db": report.sqnr_db, "agreement": report.agreement,
            "bytes": size, "speedup": report.speedup if report.latency["sure"] else None,
            "output_sqnr_db": report.output_sqnr_db,
            "level": verdict.level, "reasons": list(verdict.reasons),
        }  # fmt: skip


def _plans_any(prepared: Prepared) -> bool:
    """Whether the plan quantizes anything."""
    plan = prepared.plan()
    return bool(plan.stored) or any(node.how not in (FLOAT, "half") for node in plan.nodes)


def _quantizes(report: Report) -> bool:
    """Whether anything was quantized to 8 bits or fewer."""
    return any(row.how not in (FLOAT, "half") for row in report.graph)
