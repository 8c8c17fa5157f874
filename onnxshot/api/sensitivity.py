"""`sensitivity`: measure how much of the outputs' error each node causes when that node alone is int8."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.write_results import source_name
from onnxshot.maths.quant_scheme import PerTensor
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.recipe_options import RecipeOptions, listed
from onnxshot.report.html import figures
from onnxshot.report.html.notebook import Rows, card, folded, sentences, table
from onnxshot.report.saving import save_report
from onnxshot.report.values import rounded, stamped
from onnxshot.results.model_source import ModelSource, plain_source
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.search.workbench import Unit, Workbench, workbench
from onnxshot.settings import Settings, budgeted
from onnxshot.wording import counted

_SHOWN = 20  # nodes in a card


@dataclass(frozen=True, slots=True)
class NodeSensitivity:
    """One node that the plan quantizes, or whose weight it stores in 8 bits.

    Attributes:
        node: name of the node.
        op: its operator.
        how: 'static', 'dynamic' or 'weights'; 'stored' for a node that computes in float with a weight that is stored
            in 8 bits.
        exclude: a pattern for --exclude that matches this node and no other.
        per_channel_db: SQNR in dB of the outputs when this is the only int8 node with a weight, with one scale per
            output channel; None where the planner does not quantize it alone.
        per_tensor_db: the same with one scale for the whole weight; None where the node has no weight, or where its
            scales are always per row.
        float_gain_db: gain in dB when everything but this node is quantized; None where it was not asked for.
        macs_share: its share, 0 to 1, of the multiply-accumulates of one run.
        float_ms: milliseconds of the node in ONNX Runtime in the float model; 0 where it is part of another node's
            kernel.
        int8_ms: the same in the quantized model.
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
    """The sensitivity of every quantized node, and what it was measured on.

    Attributes:
        input: path of the model.
        recipe: what was asked for, as plain values.
        sqnr_db: SQNR in dB with all nodes quantized, on the same samples, each output relative to its own scale.
        samples: how many calibration samples each figure was measured on.
        nodes: one row per node; the node whose quantization costs most accuracy comes first.
        seconds: duration of the measurement.
        notes: what a user should know.
    """

    input: str
    recipe: dict[str, Any]
    sqnr_db: float
    samples: int
    nodes: tuple[NodeSensitivity, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        values: dict[str, Any] = rounded(asdict(self))
        return stamped(values)

    def __repr__(self) -> str:
        """One line: the nodes, and the SQNR with all of them quantized."""
        worst = f", worst {self.nodes[0].node!r}" if self.nodes else ""
        return f"Sensitivity({len(self.nodes)} nodes, all quantized {self.sqnr_db:.1f} dB{worst})"

    def _repr_html_(self) -> str:
        """A card with the most sensitive nodes, which notebooks show."""
        rows = [
            (
                row.node, row.op, row.how, "" if row.per_channel_db is None else f"{row.per_channel_db:.1f}",
                "" if row.float_gain_db is None else f"{row.float_gain_db:.1f}", figures.percent(row.macs_share),
            )
            for row in self.nodes[:_SHOWN]
        ]  # fmt: skip
        heads = ("node", "op", "how", "dB alone", "gain in float", "work")
        facts = [("SQNR with all quantized", figures.decibels(self.sqnr_db)), ("samples", str(self.samples))]
        notes = folded(counted(len(self.notes), "note"), sentences(self.notes))
        return card(f"sensitivity of {self.input}", facts, table(Rows(heads, rows, frozenset({3, 4, 5}))), notes)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, or an HTML page where `path` ends in .html.

        Raises:
            UsageError: the file cannot be written.
        """
        save_report(self.to_dict(), path)


@listed
@checked
@budgeted
@one_blas_thread()
@blames_model
def sensitivity(
    model: ModelSource,
    calib: Calib | None,
    *,
    stats: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    gains: bool = False,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Unpack[RecipeOptions],
) -> Sensitivity:
    """Quantize each node alone, per channel and per tensor, and measure the error that it causes.

    Figures are the SQNR in dB of all outputs compared with the float model, over at most 8 of the samples that were
    calibrated on.

    Args:
        model: path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: calibration data, as `quantize` takes it.
        stats: path of a statistics file that `calibrate` wrote.
        preset: how samples become inputs.
        transform: called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        gains: also measure the gain in dB when each node alone goes back to float.
        recipe: what to do. `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe by name.

    Returns:
        One row per node that `quantize` would quantize, the most sensitive node first.

    Raises:
        ModelError: the model cannot be read or run.
        CalibrationError: samples or statistics do not fit the model.
        UsageError: there are no samples, or the recipe is not for int8.
        TargetError: the target cannot run what the recipe asks for.

    Example:
        >>> table = onnxshot.sensitivity("model.onnx", "samples/")
        >>> [(row.node, row.per_channel_db) for row in table.nodes[:3]]
    """
    calib = with_transform(calib, transform)
    started = time.perf_counter()
    model = plain_source(model)
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
        samples, latencies, timing = len(bench.samples), bench.latencies(), bench.timing_note
    rows = [
        NodeSensitivity(
            unit.planned.node, unit.planned.op, unit.how, unit.pattern, fine, rough,
            None if without is None else without - full, unit.macs_share, *latencies[unit.pattern],
        )
        for unit, fine, rough, without in zip(bench.units, alone, coarse, left, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda row: float("inf") if row.per_channel_db is None else row.per_channel_db)
    notes = (*bench.notes, *bench.plan.notes, *bench.prepared.model.notes, *([timing] if timing else ()))
    seconds = time.perf_counter() - started
    return Sensitivity(source_name(model), recipe.to_dict(), full, samples, tuple(rows), seconds, notes)


def _per_tensor(bench: Workbench, unit: Unit) -> Plan | None:
    """The plan for this node alone with one scale for its weight; None where it equals the per-channel plan."""
    plan = bench.alone(unit, per_channel=False)
    if plan is None:
        return None
    weight, stored = plan.weights.get(unit.planned.node), plan.stored.get(unit.planned.node, ())
    whole = weight is not None and isinstance(weight.scheme.granularity, PerTensor)
    return plan if whole or (stored and not any(one.axes for one in stored)) else None


def _column(bench: Workbench, what: str, plans: Iterable[Plan | None]) -> list[float | None]:
    """SQNR in dB of each plan; None for each None."""
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
