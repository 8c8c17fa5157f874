"""`inspect`: describe a model and the plan that `quantize` would make for it, before any calibration."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.data_summary import InputSummary, describe_inputs
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import UsageError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.integer_weights import weights_in_bytes
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import FROZEN, INFERRED, SAMPLE, by_label
from onnxshot.graph.weight_sparsity import Layer, layers_of, sparsity_notes
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.planning.plan import FLOAT, HALF, Plan
from onnxshot.planning.plan_tables import plan_tables
from onnxshot.precision16.convert import predict_conversion
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.html import figures
from onnxshot.report.html.markup import Markup
from onnxshot.report.html.notebook import card, folded, sentences
from onnxshot.results.model_source import ModelSource, plain_source
from onnxshot.rewriting.prepare import half_notes, prepare, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.runtimes.ort_versions import VersionNeeds, needs, runs_nowhere
from onnxshot.settings import Settings, budgeted
from onnxshot.targets import target_named
from onnxshot.verification.io_contract import Port, contract
from onnxshot.wording import counted, worded

_SIZES = {
    SAMPLE: "on the first sample",
    FROZEN: "at the sizes that the model states",
    INFERRED: "with free dimensions as 1: give [[calib=DATA]] for real ones",
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A description of a model, and the plan for it.

    Attributes:
        ports: Inputs and outputs with types and dimensions.
        opset: Version of the default operator set.
        weight_bytes: Size of the weights in bytes.
        ops: Operator -> number of nodes, the most frequent first.
        plan: What `quantize` would do; None if the model is quantized already.
        macs: Node name -> multiply-accumulates of one run.
        sizes: `from`: whether `macs` are counted on the first sample, at the fixed sizes of the model, or with free
            dimensions as 1. `unknown`: nodes whose size is unknown, counted at one position.
        onnxruntime: Versions of ONNX Runtime that run the model; None if none does.
        inputs: Statistics of each input in the calibration data, if there is some.
        notes: What the user should know about normalization and the target.
        layers: Weights and their zeros, layer by layer; empty for models with more than 256 MB of weights.
    """

    ports: tuple[Port, ...]
    opset: int
    weight_bytes: int
    ops: dict[str, int]
    plan: Plan | None
    macs: dict[str, int]
    sizes: dict[str, Any]
    onnxruntime: VersionNeeds | None
    inputs: tuple[InputSummary, ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()

    @property
    def int8_macs_share(self) -> float | None:
        """Share 0..1 of the multiply-accumulates that the plan quantizes; None without a plan or without any work."""
        total = sum(self.macs.values())
        if self.plan is None or not total:
            return None
        left = {n.node for n in self.plan.nodes if n.how in (FLOAT, HALF)}
        return sum(v for k, v in self.macs.items() if k not in left) / total

    def __repr__(self) -> str:
        """One line: the plan, and the share of the work that it quantizes."""
        plan = "quantized already" if self.plan is None else repr(self.plan)
        return f"Inspection({', '.join(f'{name} {text}' for name, text in self._facts() if text)}, {plan})"

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        ports = sentences([str(port) for port in self.ports])
        planned = Markup() if self.plan is None else plan_tables(self.plan, self.macs)
        title = "the model is quantized already" if self.plan is None else f"plan for {self.plan.target}"
        notes = [*self.notes, *(() if self.plan is None else self.plan.notes)]
        shown = folded(counted(len(notes), "note"), sentences(notes))
        return card(title, self._facts(), planned, folded("inputs and outputs", ports), shown)

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("opset", str(self.opset)),
            ("weights", figures.megabytes(self.weight_bytes)),
            ("nodes", str(sum(self.ops.values()))),
            ("MACs", f"{sum(self.macs.values()):,}" if self.macs else ""),
            ("in int8", figures.percent(self.int8_macs_share, 0)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        plan = self.plan
        return {
            "ports": [str(p) for p in self.ports],
            "opset": self.opset,
            "weight_bytes": self.weight_bytes,
            "ops": self.ops,
            "macs": sum(self.macs.values()),
            "sizes": self.sizes,
            "onnxruntime": None if self.onnxruntime is None else asdict(self.onnxruntime),
            "int8_macs_share": self.int8_macs_share,
            "quantized_already": plan is None,
            "nodes": [] if plan is None else [asdict(n) for n in plan.nodes],
            "tensors": [] if plan is None else list(plan.tensors),
            "skips": [] if plan is None else [asdict(s) for s in plan.skips],
            "inputs": [asdict(i) for i in self.inputs],
            "notes": list(self.notes),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def to_text(self) -> str:
        """Return the description as text."""
        most = ", ".join(f"{op} {count}" for op, count in list(self.ops.items())[:8])
        lines = [*map(str, self.ports), f"opset {self.opset}, {self.weight_bytes / 1e6:.2f} MB of weights, {most}"]
        for i in self.inputs:
            flags = f"  ! {'; '.join(i.flags)}" if i.flags else ""
            lines.append(
                f"data {i.name!r}: {i.dtype} {i.shape}  min {i.low:.4g}  mean {i.mean:.4g}  max {i.high:.4g}{flags}"
            )
        lines += self._work()
        lines.append("the model is quantized already" if self.plan is None else self.plan.to_text(self.macs))
        lines += _sparse(self.layers)
        if self.onnxruntime is not None and (self.plan is None or self.onnxruntime.rests_on):
            lines.append(self.onnxruntime.to_text())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _work(self) -> list[str]:
        """Lines about the amount of work, and the sizes it is counted at."""
        if not self.macs:
            return []
        where, unknown = worded(_SIZES[self.sizes["from"]]), self.sizes["unknown"]
        lines = [f"{sum(self.macs.values()):,} multiply-accumulates {where}"]
        if unknown:
            lines.append(
                f"of {counted(len(unknown), 'node')} such as {unknown[0]!r} the size is not known: "
                "counted at one position"
                + ("" if self.sizes["from"] == SAMPLE else worded(", give [[calib=DATA]]"))
            )
        return lines


def _sparse(layers: tuple[Layer, ...]) -> list[str]:
    """A table of the zeros in the weights, and what they bring on each target; empty without zeros."""
    benefits = sparsity_notes(layers)
    if not benefits:
        return []
    rows = [
        f"  {layer.node:40} {layer.op:8} {layer.parameters:>10,} {layer.macs:>13,} {100 * layer.sparsity:6.1f} %  "
        f"{layer.pattern:12} {layer.bytes / 1e3:9.1f} kB, packed {layer.packed_bytes / 1e3:.1f}"
        for layer in layers
    ]
    return [f"  {'weight of':40} {'op':8} {'values':>10} {'MACs':>13} {'zeros':>8}  pattern", *rows, *benefits]


@checked
@budgeted
@one_blas_thread()
@blames_model
def inspect(
    model: ModelSource,
    *,
    recipe: Recipe | None = None,
    calib: Calib | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Inspection:
    """Describe a model and plan its quantization; with `calib`, also describe the data.

    The model is only run to check the ranges of values for a 16-bit precision, if there is data.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        recipe: The recipe to plan for. Default: int8 for ONNX Runtime.
        calib: Calibration data, as `quantize` takes it.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Threads, samples.

    Returns:
        The description; `to_text` prints it.

    Raises:
        ModelError: The model cannot be read.
        UsageError: A glob of the recipe matches nothing.
        TargetError: There is no such target, or it cannot run the precision.
        CalibrationError: The data does not fit the model.

    Example:
        >>> print(onnxshot.inspect("model.onnx").to_text())
    """
    calib = with_transform(calib, transform)
    model = plain_source(model)
    recipe = recipe or Recipe()
    if recipe.mode == "auto":
        hint = "inspect with [[mode=weights]] or [[mode=dynamic]]"
        raise UsageError("mode auto is settled by quantize, which measures", hint)
    target = target_named(recipe.target)
    loaded = load_model(model)
    ports, opset, size = contract(loaded), loaded.opset, loaded.weight_bytes()
    versions = None if runs_nowhere(loaded) else needs(loaded)
    ops = dict(Counter(n.op for _, n in loaded.walk()).most_common())
    quantized = bool(already_quantized(loaded) or weights_in_bytes(loaded))
    inputs: tuple[InputSummary, ...] = ()
    first = None
    if not quantized:
        widened = widen(loaded).computed if recipe.quantizes else {}
        loaded.notes += half_notes(widened, kept=target.keeps_half)
        prepare(loaded, target, recipe, half=target.keeps_half and bool(widened))
    plan = None if quantized else make_plan(loaded, target, recipe)
    every = replace(settings or Settings(), samples="all")
    given = contextlib.nullcontext() if calib is None else open_calib(calib, loaded, preset, every)
    with given as data:
        if data is not None:
            inputs = describe_inputs(data)
            first = data[0].feed
        if plan is not None and recipe.half is not None:
            plan = predict_conversion(loaded, plan, target, recipe, data, settings or Settings())
    sizes = sizes_on(loaded, first, threads=(settings or Settings()).threads)
    rows = sizes.work(loaded)
    work = by_label(rows)
    notes = (*loaded.notes, *([worded(target.note)] if target.note else []))
    counted_at, layers = sizes.report_entry(rows), layers_of(loaded, work)
    return Inspection(ports, opset, size, ops, plan, work, counted_at, versions, inputs, notes, layers)
