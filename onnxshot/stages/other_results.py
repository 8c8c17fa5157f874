"""Make what other recipes make of a model, measure it as the result was measured, and choose what to take.

Each is judged by the same rules as the result, on the same samples. One that quantizes nothing, or makes a file larger
than the input, is left out.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxshot.delivery.artifacts import Judged
from onnxshot.errors import OnnxshotError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.save import write
from onnxshot.planning.plan import FLOAT, WEIGHTS
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.plan_trials import SHORTEST_MS
from onnxshot.report.accuracy_findings import is_inaccurate
from onnxshot.report.advice import BAD, FLOOR_DB
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.runtimes.ort_bench import CLEAR, NOISE
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import stored_bytes
from onnxshot.stages.make_quantized import Quantized, make_quantized
from onnxshot.stages.prepare_model import Prepared, prepare_model
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference

_SAME_DB = 1.0  # a result that is so much less accurate is as good, if it is faster


@dataclass(slots=True)
class Tried:
    """A result that another recipe makes.

    Attributes:
        recipe: the recipe.
        row: its figures and its verdict, as in `Report.tried`.
        inaccurate: whether a figure of accuracy is below its floor.
        db: SQNR in dB of the worst output.
        measured: how many times as fast as the input it was measured to be, whether that is certain or not.
        made: the result; None once another one is better.
    """

    recipe: Recipe
    row: dict[str, Any]
    inaccurate: bool
    db: float
    measured: float
    made: Quantized | None

    @property
    def speed(self) -> float:
        """How many times as fast as the input it surely is; 1 where that is not certain."""
        return float(self.row["speedup"] or 1.0)


@dataclass
class OtherResults:
    """Results of other recipes for the same model.

    Attributes:
        made: the result, with the figures of its proof in its report.
        judged: the given model and the samples that the result was compared on.
        deadline: value of `time.perf_counter` after which no other one is made.
        found: those that were measured.
    """

    made: Quantized
    judged: Judged
    deadline: float
    found: list[Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._inaccurate = is_inaccurate(asdict(self.made.report))

    def best(self) -> Tried | None:
        """The one place that decides: what to take in place of the result; None to keep it.

        An inaccurate result gives way to the fastest accurate one that is not slower than the input, or than it is
        itself. An accurate one gives way to what is clearly faster, and as accurate. Runs that are mostly overhead are
        too short to be slower or faster. Of equally fast ones the most accurate is taken.
        """
        report = self.made.report
        short = report.latency.get("float_ms", 0.0) < SHORTEST_MS
        kept = [one for one in self.found if one.made is not None]
        fit = [one for one in kept if not one.inaccurate and one.row["level"] != BAD]
        if self._inaccurate:
            fit = [one for one in fit if short or one.measured >= min(report.speedup or 1.0, 1.0) * (1 - CLEAR)]
        else:
            now, least = (report.speedup or 1.0) * (1 + CLEAR), min(_db(report) - _SAME_DB, 2 * FLOOR_DB)
            faster = (one for one in fit if not short and one.speed > max(now, 1 + NOISE))
            fit = [one for one in faster if one.db >= least or report.slower]
        if not fit:
            return None
        limit = 0.0 if short else max(one.speed for one in fit) / (1 + CLEAR)
        return max((one for one in fit if one.speed >= limit), key=lambda one: one.db)

    def attempt(self, recipe: Recipe, words: str) -> Tried | None:
        """Make what a recipe makes, and measure it as the result was measured, once and while there is time.

        Returns None where it cannot be made, quantizes nothing, or is larger than the input.
        """
        known = next((one for one in self.found if one.recipe == recipe), None)
        if known is not None or time.perf_counter() > self.deadline:
            return known
        try:
            with scratch() as folder:
                made = self._measured(recipe, folder)
        except OnnxshotError:
            return None
        if made is None:
            return None
        report, size = made.report, made.report.outputs[0].bytes
        inaccurate = is_inaccurate(asdict(report))
        row, speed = row_of(report, size, words), report.speedup or 1.0
        self.found.append(Tried(recipe, row, inaccurate, _db(report), speed, made))
        report.outputs = []
        best = self.best()
        for one in self.found:  # each holds two models
            one.made = one.made if one is best else None
        return self.found[-1]

    def in_full(self, one: Tried) -> Quantized | None:
        """The result of one that was tried, with all that its effort asks for; None once another one is better."""
        if one.made is None or _quick(one.recipe) == one.recipe:
            return one.made
        try:
            prepared = prepare_model(self.made.prepared.source, one.recipe, self.made.prepared.settings)
            return make_quantized(prepared, self.made.samples, self.made.reference)
        except OnnxshotError:
            return one.made

    def _measured(self, recipe: Recipe, folder: Path) -> Quantized | None:
        path, reference, samples = folder / "other.onnx", self.judged.reference, self.judged.samples
        settings = replace(self.made.prepared.settings, progress=None)
        prepared = prepare_model(self.made.prepared.source, _quick(recipe), settings)
        if not _plans_any(prepared):
            return None
        other = make_quantized(prepared, self.made.samples, self.made.reference)
        report = other.report
        write(other.model, path)
        size, given = stored_bytes(path), self.made.report.input_bytes
        if not _quantizes(report) or (given and size > given):
            return None
        found = compare(reference, path, samples, threads=settings.threads, sizes=self.made.prepared.fixed_shapes)
        proof.record_comparison(report, found, random=False)
        ran = executed(path, sample=samples[0].feed, threads=settings.threads)
        if recipe.mode != WEIGHTS and ran.total_macs and not ran.share:
            return None
        proof.record_execution(report, ran)
        proof.record_latency(report, Reference(reference).at(folder / "float.onnx"), path, samples, settings)
        report.input_bytes = given
        report.outputs = [Artifact(path.name, self.made.prepared.target.name, "onnx", size)]
        return other


def _quick(recipe: Recipe) -> Recipe:
    """The recipe that is tried for another: "best" takes several times as long, and is no worse than "balanced"."""
    return replace(recipe, effort="balanced") if recipe.effort == "best" else recipe


def _db(report: Report) -> float:
    return math.inf if report.worst_db is None else report.worst_db


def row_of(report: Report, size: int, words: str) -> dict[str, Any]:
    """The row of `Report.tried` of a result: its figures and its verdict. words: how it was made."""
    verdict = report.verdict
    return {
        "options": words, "sqnr_db": report.sqnr_db, "agreement": report.agreement,
        "bytes": size, "speedup": report.speedup if report.latency.get("sure") else None,
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
