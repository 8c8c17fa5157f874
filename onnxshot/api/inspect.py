"""What a model holds and what would be done to it, before any calibration."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.data_summary import InputSummary, describe_inputs
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import open_data
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import FROZEN, INFERRED, SAMPLE, by_label
from onnxshot.graph.weight_sparsity import Layer, layers_of, sparsity_notes
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.planning.plan import FLOAT, HALF, Plan
from onnxshot.precision16.convert import foresee_half
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.model_inputs import input_specs, resolve_preset
from onnxshot.rewriting.prepare import half_notes, prepare, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.runtimes.ort_versions import VersionNeeds, needs, runs_nowhere
from onnxshot.settings import Settings
from onnxshot.targets import target_named
from onnxshot.verification.io_contract import Port, contract

_SIZES = {
    SAMPLE: "on the first sample",
    FROZEN: "at the sizes that the model states",
    INFERRED: "with free dimensions as 1: give --calib for real ones",
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts of one model and the plan for it.

    Attributes:
        ports: inputs and outputs with types and dimensions.
        opset, weight_bytes, ops: what the file holds.
        plan: what quantize would do; None for a model that is quantized already.
        macs: multiply-accumulates of one run by node name, on the first sample; else free dimensions count as 1.
        sizes: what they are counted at: `from` a sample, frozen sizes, or inferred with free dimensions as 1;
            `unknown`: nodes whose size is not known even so, counted at one position.
        inputs: what the calibration data looks like, where it was given.
        notes: what normalizing did that a user should know, and what the target asks for.
        onnxruntime: which versions of it load the model, and run it as it asks for; None where none does.
        layers: the weights one by one, with their zeros; none for models with more than 256 MB of them.
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
        """Share 0..1 of multiply-accumulates the plan puts into 8 bits; None where there are none."""
        total = sum(self.macs.values())
        if self.plan is None or not total:
            return None
        left = {n.node for n in self.plan.nodes if n.how in (FLOAT, HALF)}
        return sum(v for k, v in self.macs.items() if k not in left) / total

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
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
        """The same for people."""
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
        """How much work there is, and at which sizes."""
        if not self.macs:
            return []
        where, unknown = _SIZES[self.sizes["from"]], self.sizes["unknown"]
        lines = [f"{sum(self.macs.values()):,} multiply-accumulates {where}"]
        if unknown:
            lines.append(
                f"of {len(unknown)} nodes such as {unknown[0]!r} the size is not known: counted at one position"
                + ("" if self.sizes["from"] == SAMPLE else ", give --calib")
            )
        return lines


def _sparse(layers: tuple[Layer, ...]) -> list[str]:
    """The zeros of the weights as a table, where there are any, and what they are worth."""
    told = sparsity_notes(layers)
    if not told:
        return []
    rows = [
        f"  {layer.node:40} {layer.op:8} {layer.parameters:>10,} {layer.macs:>13,} {100 * layer.sparsity:6.1f} %  "
        f"{layer.pattern:12} {layer.bytes / 1e3:9.1f} kB, packed {layer.packed_bytes / 1e3:.1f}"
        for layer in layers
    ]
    return [f"  {'weight of':40} {'op':8} {'values':>10} {'MACs':>13} {'zeros':>8}  pattern", *rows, *told]


@checked
@blames_model
def inspect(
    model: str | Path | ModelProto,
    *,
    recipe: Recipe | None = None,
    calib: Any = None,
    preset: str | Preset | None = None,
    settings: Settings | None = None,
) -> Inspection:
    """Describe a model and plan it. With `calib`, also say what its data looks like.

    It is run for floats of 16 bits alone, where there is data: their values must fit.

    Raises ModelError, UsageError, TargetError, CalibrationError as `quantize` would.
    """
    recipe = recipe or Recipe()
    target = target_named(recipe.target)
    loaded = load_model(model)
    ports, opset, size = contract(loaded), loaded.opset, loaded.weight_bytes()
    versions = None if runs_nowhere(loaded) else needs(loaded)
    ops = dict(Counter(n.op for _, n in loaded.walk()).most_common())
    quantized = bool(already_quantized(loaded))
    inputs: tuple[InputSummary, ...] = ()
    first = None
    if not quantized:
        widened = widen(loaded).computed if recipe.quantizes else {}
        loaded.notes += half_notes(widened, kept=target.keeps_half)
        prepare(loaded, target, recipe, half=target.keeps_half and bool(widened))
    plan = None if quantized else make_plan(loaded, target, recipe)
    given = contextlib.nullcontext() if calib is None else open_data(calib, input_specs(loaded), resolve_preset(preset))
    with given as data:
        if data is not None:
            inputs = describe_inputs(data)
            first = data[0].feed
        if plan is not None and recipe.half is not None:
            plan = foresee_half(loaded, plan, target, recipe, data, settings or Settings())
    sizes = sizes_on(loaded, first, threads=(settings or Settings()).threads)
    rows = sizes.work(loaded)
    work = by_label(rows)
    notes = (*loaded.notes, *([target.note] if target.note else []))
    told, layers = sizes.report_entry(rows), layers_of(loaded, work)
    return Inspection(ports, opset, size, ops, plan, work, told, versions, inputs, notes, layers)
