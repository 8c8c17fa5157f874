"""What else is tried where a result falls short: options that may help are measured, so that advice can name them.

Below the floor of accuracy, the few nodes whose return to float brings most; where recurrent layers stay float, where
it is larger, or where its graph is faster in float, weights alone; where it is slower, products in int8 without
calibration. Each is judged by the rules that the result is judged by. One that quantizes nothing, or makes
a file larger than the input, is left out. Trials are bounded in number and in time, change nothing that is written, and
stand under `tried`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnx import ModelProto

from onnxshot.calibration.readers import Dataset
from onnxshot.comparison.balanced_sqnr import CandidateError, joined
from onnxshot.delivery.artifacts import Judged
from onnxshot.errors import OnnxshotError
from onnxshot.execution import candidate_race
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Constant, Model, weights
from onnxshot.graph.fixed_shapes import AS_THEY_ARE, Frozen
from onnxshot.graph.load import load_model
from onnxshot.graph.ops import op_of
from onnxshot.graph.save import write
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import PRODUCTS
from onnxshot.planning.trained_scales import Trained
from onnxshot.recipes.command_line import options_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.float_fallback import Units, helpful
from onnxshot.report.advice import BAD, FLOOR_DB, is_slower, level_of
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.report.verdict import is_inaccurate
from onnxshot.rewriting.apply_plan import apply_plan
from onnxshot.runtimes.ort_bench import NOISE, bench
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import stored_bytes
from onnxshot.settings import Settings
from onnxshot.targets.base import Target
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare

RECURRENT = ("LSTM", "GRU", "RNN")
_HARDLY_FASTER = 1.2  # times as fast as the input
_SHARE = 0.25  # of the weights of the result: recurrent layers below this are not what makes it large
_TRIED_ON = 4  # samples
_HALF_DB = 6.0
_NAMED = 6  # nodes: a longer list is a search's business
_SECONDS = 30.0  # after which no trial is begun
_TO_MEASURE = 8.0  # of them, that looking for nodes leaves to measure what it finds
_SHORTEST_MS = 0.1  # of a run whose kernels are compared: starting them is most of a shorter one
_FUSED = ("Relu", "Clip")


class _OutOfTime(Exception):
    """Looking for nodes takes too long; raised between two trials."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A result that was measured, and what other results can be made of.

    Attributes:
        model: the quantized one.
        float_model: that the plan was made for.
        recipe: as it was asked for; `decided`: with what was found to suit the outputs.
        make: the model of another recipe, with a report of what was done; raises what `quantize` raises.
        judged: the model that was given, and the samples that the result was held against it on.
        written_bytes: size of the result.
        frozen: sizes that inputs were fixed at, as was asked for.
    """

    report: Report
    float_model: ModelProto
    model: Model
    plan: Plan
    recipe: Recipe
    decided: Recipe
    target: Target
    settings: Settings
    evidence: Evidence
    trained: Trained
    judged: Judged
    make: Callable[[Recipe], tuple[Model, Report]]
    written_bytes: int
    frozen: Frozen = AS_THEY_ARE
    _deadline: float = field(init=False, default_factory=lambda: time.perf_counter() + _SECONDS)

    def tried(self, data: Dataset) -> list[dict[str, Any]]:
        """Rows of what was measured; empty where nothing falls short, or there is nothing to try."""
        report, size = self.report, self.model.weight_bytes()
        too_large = size > candidate_race.MAX_BYTES
        if self.recipe.precision != "int8" or data.random or not self.target.runs_here or too_large:
            return []
        rows = []
        found = (*self._recurrent(), *self._quicker(), *self._unhurried(), *self._smaller())
        options = {options_of(recipe): recipe for recipe in found}
        for recipe in options.values():
            if time.perf_counter() < self._deadline:
                rows += list(self._measured(recipe))
        if is_inaccurate(asdict(report)) and report.sqnr_db is not None:  # without float outputs nothing steers it
            with contextlib.suppress(OnnxshotError, _OutOfTime):
                rows += self._floats(data)
        return rows

    def _quicker(self) -> Iterator[Recipe]:
        """Products quantized at run time, where the result is slower than the input, or hardly faster."""
        products = any(n.how == STATIC and n.op in PRODUCTS for n in self.plan.nodes)
        speedup = self.report.speedup
        if speedup is not None and speedup < _HARDLY_FASTER and products and self.recipe.mode == STATIC:
            yield replace(self.recipe, mode=DYNAMIC)

    def _unhurried(self) -> Iterator[Recipe]:
        """Weights alone, where the graph as it was normalized is faster in float than in int8; a note says so.

        Then what the result gains over the input is the work of normalizing.
        """
        if self.report.speedup is None or self.recipe.mode != STATIC or all(n.how == FLOAT for n in self.plan.nodes):
            return
        feeds = [self.judged.samples[i].feed for i in range(min(len(self.judged.samples), _TRIED_ON))]
        with scratch() as folder:
            plain, made = folder / "float.onnx", folder / "int8.onnx"
            plain.write_bytes(self.float_model.SerializeToString())
            write(self.model, made)
            try:
                plain_run, ours = bench(
                    [plain, made], feeds, threads=self.settings.threads, seconds=self.settings.bench_seconds,
                    precision=NOISE,
                )  # fmt: skip
            except OnnxshotError:
                return
        if ours.sure and is_slower(ours.ratio) and plain_run.median_ms >= _SHORTEST_MS:
            self.report.notes.append(
                f"the same graph in float, normalized but not quantized, is {1 / ours.ratio:.2f}x as fast as this file "
                "here: int8 brings no speed, --mode weights stores its weights in 8 bits alone"
            )
            yield replace(self.recipe, mode="weights")

    def _smaller(self) -> Iterator[Recipe]:
        """Weights alone, where the file is larger than the input."""
        if self.written_bytes > self.report.input_bytes > 0 and self.recipe.mode != "weights":
            yield replace(self.recipe, mode="weights")

    def _recurrent(self) -> Iterator[Recipe]:
        """Weights alone in 8 bits, where those of recurrent layers in float are a good part of the file."""
        floats = {n.node for n in self.plan.nodes if n.how == FLOAT and n.op in RECURRENT}
        nodes = [node for _, node in self.model.walk() if node.label in floats]
        size = sum(weights.size_bytes(t) for node in nodes for t in node.inputs[1:3] if isinstance(t, Constant))
        if not nodes or size < _SHARE * self.model.weight_bytes():
            return
        if self.recipe.mode != "weights":
            yield replace(self.recipe, mode="weights")

    def _floats(self, data: Dataset) -> list[dict[str, Any]]:
        """Rows of the few nodes whose return to float brings what is below its floor above it.

        They are looked for on a few samples. Where what is found does not hold on all, more is asked for once more.
        """
        rows: list[dict[str, Any]] = []
        for wanted in (self._wanted_db, self._wanted_db + _HALF_DB):
            if rows and rows[-1]["level"] != BAD:
                break
            units = self._units(data, wanted)
            if not units or any(row["units"] == units for row in rows):
                break
            recipe = replace(self.recipe, exclude=(*self.recipe.exclude, *units))
            rows += [{**row, "units": units} for row in self._measured(recipe)]
        return [{key: value for key, value in row.items() if key != "units"} for row in rows]

    def _units(self, data: Dataset, wanted: float) -> list[str]:
        """Patterns of the nodes, in graph order; empty where there are none, or too many to name."""
        base = load_model(self.float_model)
        patterns, node_of = exact_patterns(base), {node.label: node for _, node in base.walk()}
        order = []
        for planned in self.plan.nodes:
            node = node_of.get(planned.node)
            computes = node is not None and not (node.op in _FUSED or op_of(node).keeps_range)
            if planned.how != FLOAT and computes and planned.node in patterns:
                order.append(patterns[planned.node])
        if not order:
            return []
        step = max(1, len(data) // _TRIED_ON)
        samples = [data[i] for i in range(0, len(data), step)][:_TRIED_ON]

        def measure(sets: Iterable[Units]) -> Iterator[float]:
            made = (bytes(self._with_floats(units).SerializeToString()) for units in sets)
            reference, threads = self.judged.reference, self.settings.threads
            for one in candidate_race.measure_candidates(reference, made, samples, threads=threads):
                if time.perf_counter() > self._deadline - _TO_MEASURE:
                    raise _OutOfTime
                yield self._closeness(one)

        units = helpful(order, measure, wanted)
        return [unit for unit in order if unit in units] if len(units) <= _NAMED else []

    @property
    def _low(self) -> list[str]:
        """The outputs that are below the floor by themselves."""
        return [name for name, db in self.report.output_sqnr_db.items() if level_of(db) == BAD]

    def _closeness(self, one: CandidateError) -> float:
        """SQNR of all outputs together, or of the worst of those that are below the floor: it is to be lifted."""
        total, outputs = one.total.db, joined(one.samples)
        return min([total, *(outputs[name].db for name in self._low if name in outputs)])

    @property
    def _wanted_db(self) -> float:
        """The floor; where the result is above it and its answers are not alike, half of its error."""
        now = self.report.sqnr_db
        return FLOOR_DB if self._low or now is None or not now >= FLOOR_DB else now + _HALF_DB

    def _with_floats(self, units: Units) -> ModelProto:
        """The model with these units in float, without repairs."""
        model = load_model(self.float_model)
        recipe = replace(self.decided, exclude=(*self.decided.exclude, *sorted(units)))
        apply_plan(model, make_plan(model, self.target, recipe, self.evidence, self.trained), self.recipe)
        return model.to_proto()

    def _measured(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """The figures and the verdict of what a recipe makes, taken as those of the result were.

        Nothing where it cannot be made, quantizes nothing, or is larger than the input: then it is no advice.
        """
        with scratch() as folder:
            path, reference, samples = folder / "other.onnx", self.judged.reference, self.judged.samples
            try:
                model, report = self.make(recipe)
                write(model, path)
                size, given = stored_bytes(path), self.report.input_bytes
                if not _quantizes(report) or (given and size > given):
                    return
                found = compare(reference, path, samples, threads=self.settings.threads, sizes=self.frozen)
                proof.record_comparison(report, found, random=False)
                ran = executed(path, sample=samples[0].feed, threads=self.settings.threads)
                if recipe.mode != "weights" and ran.total_macs and not ran.share:
                    return
                proof.record_execution(report, ran)
                if isinstance(reference, bytes):
                    source = folder / "float.onnx"
                    source.write_bytes(reference)
                else:
                    source = reference
                proof.record_latency(report, source, path, samples, self.settings)
            except OnnxshotError:
                return
        report.input_bytes = given
        report.outputs = [Artifact(path.name, self.target.name, "onnx", size)]
        verdict = report.verdict
        yield {
            "options": options_of(recipe, self.recipe), "sqnr_db": report.sqnr_db, "agreement": report.agreement,
            "bytes": size, "speedup": report.speedup if report.latency["sure"] else None,
            "output_sqnr_db": report.output_sqnr_db,
            "level": verdict.level, "reasons": list(verdict.reasons),
        }  # fmt: skip


def _quantizes(report: Report) -> bool:
    """Whether anything was put into 8 bits."""
    return any(row.how not in (FLOAT, "half") for row in report.graph)
