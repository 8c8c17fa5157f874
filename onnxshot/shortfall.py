"""What else is tried where a result falls short: options that may help are measured, so that advice can name them.

Below the floor of accuracy, the few nodes whose return to float brings most; where recurrent layers stay float, the
options that quantize them; where it is slower, products in int8 without calibration; where it is larger, weights alone.
Trials are bounded in number and in time, change nothing that is written, and stand under `tried`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import ModelProto

from onnxshot import trial
from onnxshot.advice import BAD, FLOOR_DB, level_of
from onnxshot.calibration.readers import Dataset
from onnxshot.effort.rescue import Units, helpful
from onnxshot.emitting import Judged
from onnxshot.errors import OnnxshotError
from onnxshot.graph import Constant, Model, weights
from onnxshot.graph.load import load_model
from onnxshot.graph.ops import op_of
from onnxshot.graph.save import write
from onnxshot.passes.smooth import PRODUCTS
from onnxshot.planning.match import exact_patterns
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, Plan
from onnxshot.planning.planner import make_plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.trained import Trained
from onnxshot.proving import proof
from onnxshot.proving.verify import compare
from onnxshot.recipes.recipe import Recipe
from onnxshot.report import Report
from onnxshot.rewrite import apply
from onnxshot.settings import Settings
from onnxshot.targets.base import Target
from onnxshot.writing.places import scratch

RECURRENT = ("LSTM", "GRU", "RNN")
_SHARE = 0.25  # of the weights of the result: recurrent layers below this are not what makes it large
_TRIED_ON = 4  # samples
_HALF_DB = 6.0
_NAMED = 6  # nodes: a longer list is a search's business
_SECONDS = 30.0  # after which no trial is begun
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
        make: the model of another recipe; raises what `quantize` raises.
        judged: the model that was given, and the samples that the result was held against it on.
        written_bytes: size of the result.
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
    make: Callable[[Recipe], Model]
    written_bytes: int
    _deadline: float = field(init=False, default_factory=lambda: time.perf_counter() + _SECONDS)

    def tried(self, data: Dataset) -> list[dict[str, Any]]:
        """Rows of what was measured; empty where nothing falls short, or there is nothing to try."""
        report, size = self.report, self.model.weight_bytes()
        if self.recipe.precision != "int8" or data.random or not self.target.runs_here or size > trial.MAX_BYTES:
            return []
        options = {**self._recurrent(), **self._quicker(), **self._smaller()}
        below = level_of(report.sqnr_db, report.agreement) == BAD
        if below or any(level_of(db) == BAD for db in report.output_sqnr_db.values()):
            with contextlib.suppress(OnnxshotError, _OutOfTime):
                options |= self._floats(data)
        rows = []
        for text, recipe in options.items():
            if time.perf_counter() < self._deadline:
                rows += list(self._measured(text, recipe))
        return rows

    def _quicker(self) -> dict[str, Recipe]:
        """Products quantized at run time, where the result is slower than the input."""
        products = any(n.how == STATIC and n.op in PRODUCTS for n in self.plan.nodes)
        if not self.report.slower or not products or self.recipe.mode != STATIC:
            return {}
        return {"--mode dynamic": replace(self.recipe, mode=DYNAMIC)}

    def _smaller(self) -> dict[str, Recipe]:
        """Weights alone, where the file is larger than the input."""
        if not self.written_bytes > self.report.input_bytes > 0 or self.recipe.mode == "weights":
            return {}
        return {"--mode weights": replace(self.recipe, mode="weights")}

    def _recurrent(self) -> dict[str, Recipe]:
        """Options that quantize recurrent layers, where those that stay float are a good part of the file."""
        floats = {n.node for n in self.plan.nodes if n.how == FLOAT and n.op in RECURRENT}
        nodes = [node for _, node in self.model.walk() if node.label in floats]
        size = sum(weights.size_bytes(t) for node in nodes for t in node.inputs[1:3] if isinstance(t, Constant))
        if not nodes or size < _SHARE * self.model.weight_bytes():
            return {}
        found: dict[str, Recipe] = {}
        ops = {node.op for node in nodes} & self.target.contrib
        if self.recipe.mode == STATIC:
            for op in sorted(ops):
                found[f"--include {op}"] = replace(self.recipe, include=(*self.recipe.include, op))
        if ops and self.recipe.mode != DYNAMIC:
            found["--mode dynamic"] = replace(self.recipe, mode=DYNAMIC)
        if self.recipe.mode != "weights":
            found["--mode weights"] = replace(self.recipe, mode="weights")
        return found

    def _floats(self, data: Dataset) -> dict[str, Recipe]:
        """Patterns of the few nodes whose return to float brings the outputs above the floor, on a few samples."""
        base = load_model(self.float_model)
        patterns, node_of = exact_patterns(base), {node.label: node for _, node in base.walk()}
        order = []
        for planned in self.plan.nodes:
            node = node_of.get(planned.node)
            computes = node is not None and not (node.op in _FUSED or op_of(node).keeps_range)
            if planned.how != FLOAT and computes and planned.node in patterns:
                order.append(patterns[planned.node])
        if not order:
            return {}
        step = max(1, len(data) // _TRIED_ON)
        samples = [data[i] for i in range(0, len(data), step)][:_TRIED_ON]

        def measure(sets: Iterable[Units]) -> Iterator[float]:
            made = (bytes(self._with_floats(units).SerializeToString()) for units in sets)
            for one in trial.tried(self.judged.reference, made, samples, threads=self.settings.threads):
                if time.perf_counter() > self._deadline:
                    raise _OutOfTime
                yield one.total.db

        units = helpful(order, measure, self._wanted_db)
        if not units or len(units) > _NAMED:
            return {}
        ordered = [unit for unit in order if unit in units]
        text = " ".join(f"--exclude '{unit}'" for unit in ordered)
        return {text: replace(self.recipe, exclude=(*self.recipe.exclude, *ordered))}

    @property
    def _wanted_db(self) -> float:
        """The floor; where the result is above it and its answers are not alike, half of its error."""
        now = self.report.sqnr_db
        return FLOOR_DB if now is None or not now >= FLOOR_DB else now + _HALF_DB

    def _with_floats(self, units: Units) -> ModelProto:
        """The model with these units in float, without repairs."""
        model = load_model(self.float_model)
        recipe = replace(self.decided, exclude=(*self.decided.exclude, *sorted(units)))
        apply(model, make_plan(model, self.target, recipe, self.evidence, self.trained), self.recipe)
        return model.to_proto()

    def _measured(self, options: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """The figures of what a recipe makes, as those of the result were taken; nothing where it makes nothing."""
        with scratch() as folder:
            path, reference = folder / "other.onnx", self.judged.reference
            try:
                write(self.make(recipe), path)
                found = compare(reference, path, self.judged.samples, threads=self.settings.threads)
                if isinstance(reference, bytes):
                    source = folder / "float.onnx"
                    source.write_bytes(reference)
                else:
                    source = reference
                timed = Report("", {})
                proof.time_both(timed, source, path, self.judged.samples, self.settings)
            except OnnxshotError:
                return  # what cannot be made is no advice
            yield {
                "options": options, "sqnr_db": found.sqnr_db, "agreement": found.agreement,
                "bytes": path.stat().st_size, "speedup": timed.speedup,
            }  # fmt: skip
