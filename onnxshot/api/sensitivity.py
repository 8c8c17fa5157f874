"""What each node costs: the error of the network's outputs when that node alone is int8, measured, worst first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.preset import Preset
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.write_results import source_name
from onnxshot.maths.quant_scheme import PerTensor
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.saving import save_report
from onnxshot.report.values import rounded
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.search.workbench import Unit, Workbench, workbench
from onnxshot.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeSensitivity:
    """One node that the plan quantizes, or whose weight it stores in 8 bits.

    Attributes:
        node, op, how: its name, its operator, and static, dynamic, weights, or stored: it computes in float with a
            weight that is stored in 8 bits.
        exclude: the pattern that leaves this node, and no other, in float.
        per_channel_db: SQNR in dB of the outputs when of all weighted nodes only this one is int8, with a scale per
            output channel of its weight; None where the planner's rules do not let it be int8 alone.
        per_tensor_db: the same with one scale for the weight; None where it has none, or its scales are always by row.
        float_gain_db: what is won in dB when only this node is put back to float; None where it was not asked for.
        macs_share: share 0..1 of the multiply-accumulates of one run.
        float_ms, int8_ms: what it takes in ONNX Runtime when all is in float, and when all is as planned; 0 where it is
            part of another node's kernel.
    """

    node: str
    op: str
    how: str
    exclude: str
    per_channel_db: float | None
    per_tensor_db: float | None
    float_gain_db: float | None
    macs_share: float
    float_ms: float
    int8_ms: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The table, worst first, and what it was measured on.

    Attributes:
        input: the file read.
        recipe: what was asked for.
        sqnr_db: SQNR in dB with all nodes quantized, on the same samples.
        samples: how many calibration samples were run for each figure.
        nodes: one row per node, the one whose int8 costs most first.
        seconds: what it took.
    """

    input: str
    recipe: dict[str, Any]
    sqnr_db: float
    samples: int
    nodes: tuple[NodeSensitivity, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        values: dict[str, Any] = rounded(asdict(self))
        return values

    def save(self, path: str | Path) -> None:
        """Write it as JSON, or as a page where the name ends in .html. Raises UsageError where that cannot be done."""
        save_report(self.to_dict(), path)


@checked
@blames_model
def sensitivity(
    model: str | Path | ModelProto,
    calib: Any,
    *,
    stats: str | Path | None = None,
    preset: str | Preset | None = None,
    gains: bool = False,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> Sensitivity:
    """Measure what each node costs that `quantize` would quantize: its int8 alone, per channel and per tensor.

    Figures are SQNR in dB of all outputs against the float model, over a few of the samples calibrated on.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: calibration data, as `quantize` takes it.
        stats: statistics that `calibrate` wrote.
        preset: preprocessing of pictures.
        gains: also measure what is won when each node alone is put back to float.
        recipe: what to do; `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe, by name.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    started = time.perf_counter()
    recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **options})
    settings = settings or Settings()
    settings.files.reading(*of_model_file(model), *of_run(None, calib, preset, stats=stats)).check()
    with workbench(model, calib, stats=stats, preset=preset, recipe=recipe, settings=settings) as bench:
        (full,) = bench.sqnrs([bench.plan])
        alone = _column(bench, "per channel", (bench.alone(u, per_channel=True) for u in bench.units))
        coarse = _column(bench, "per tensor", (_per_tensor(bench, u) for u in bench.units))
        left: list[float | None] = [None] * len(bench.units)
        if gains:
            left = _column(bench, "float", (bench.plan_of(bench.without([u.pattern])) for u in bench.units))
        samples, taken = len(bench.samples), bench.latencies()
    rows = [
        NodeSensitivity(
            unit.planned.node, unit.planned.op, unit.how, unit.pattern, fine, rough,
            None if without is None else without - full, unit.macs_share, *taken[unit.pattern],
        )
        for unit, fine, rough, without in zip(bench.units, alone, coarse, left, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda row: float("inf") if row.per_channel_db is None else row.per_channel_db)
    notes = (*bench.notes, *bench.plan.notes, *bench.prepared.model.notes)
    seconds = time.perf_counter() - started
    return Sensitivity(source_name(model), recipe.to_dict(), full, samples, tuple(rows), seconds, notes)


def _per_tensor(bench: Workbench, unit: Unit) -> Plan | None:
    """The plan for this node alone with one scale for its weight; None where that is no plan of its own."""
    plan = bench.alone(unit, per_channel=False)
    if plan is None:
        return None
    weight, stored = plan.weights.get(unit.planned.node), plan.stored.get(unit.planned.node, ())
    whole = weight is not None and isinstance(weight.scheme.granularity, PerTensor)
    return plan if whole or (stored and not any(one.axes for one in stored)) else None


def _column(bench: Workbench, what: str, plans: Iterable[Plan | None]) -> list[float | None]:
    """SQNR in dB of each plan; None where there is none."""
    there: list[bool] = []
    progress = bench.prepared.settings.progress

    def drawn() -> Iterator[Plan]:
        for plan in plans:
            there.append(plan is not None)
            if progress is not None:
                progress(what, len(there), len(bench.units))
            if plan is not None:
                yield plan

    found = list(bench.sqnrs(drawn()))
    results = iter(found)
    return [next(results) if has else None for has in there]
