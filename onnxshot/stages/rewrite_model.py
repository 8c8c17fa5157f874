"""Change a float model into the quantized one, as its plan says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from onnxshot.calibration.readers import Dataset
from onnxshot.delivery.record import stamp
from onnxshot.delivery.write_results import RANDOM_KEY
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import FROZEN, INFERRED, SAMPLE, Sizes, tensor_sizes
from onnxshot.graph.skip import Skip
from onnxshot.passes.fix_shapes import FixShapes
from onnxshot.passes.keep_integer_weights import KeepIntegerWeights, kept_integer_notes
from onnxshot.planning import keep_trained_scales
from onnxshot.planning.node_mode import is_embedding, is_weighted
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.precision16.convert import convert_to_precision16
from onnxshot.report.timings import Timed, untimed
from onnxshot.report.values import NOT_QUANTIZABLE, NodeReport
from onnxshot.rewriting.apply_plan import apply_plan, finish
from onnxshot.rewriting.fold_dequantized import fold_dequantized
from onnxshot.rewriting.prepare import narrow
from onnxshot.rewriting.undo_unused_int8 import undo_unused_int8
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.stages.improve_plan import FinalPlan
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared
from onnxshot.verification import report_rows
from onnxshot.wording import worded

_NAMED = 4  # operators in a note


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A quantized model, stamped with its record.

    Attributes:
        model: the quantized model.
        plan: what was done; without the nodes that came out no smaller or faster and went back to float.
        float_model: a copy of the model that the plan was made for.
        sizes: at which input sizes the work of `graph` is counted, as the report holds it.
        graph: one row per node of the float model.
        skips: what stayed float, and why.
        halved_on: how many samples decided what computes in 16 bits; None where the recipe asks for no such type.
        notes: what a user should know.
    """

    model: Model
    plan: Plan
    float_model: Model
    sizes: dict[str, object]
    graph: list[NodeReport]
    skips: list[Skip]
    halved_on: int | None
    notes: tuple[str, ...]


def rewrite_model(final: FinalPlan, samples: Samples, timed: Timed = untimed) -> Rewritten:
    """Apply the plan, repair what is learned layer by layer, and bring the graph into the form of the target.

    Changes `final.prepared.model` in place, as a copy of a large model would double the memory.

    Raises:
        ModelError: the model does not run on the samples.
    """
    prepared, plan = final.prepared, final.plan
    model, target, recipe, settings = prepared.model, prepared.target, prepared.recipe, prepared.settings
    float_model = copy_of(model)
    notes = [*plan.notes, *model.notes]
    sizes = _sizes(prepared, samples.data)
    work = sizes.work(model)
    graph = report_rows.graph_rows(model, work)
    with timed("rewrite"):
        refused = apply_plan(model, plan, recipe)
    if recipe.effort != "fast":
        with timed("repair"):
            done = final.repair(LeanModel.of(float_model), model, plan)
        notes += [done] if done else []
    refused += finish(model, target, recipe)
    with timed("mend"):
        plan = undo_unused_int8(model, plan, target, LeanModel.of(float_model))
        notes += fold_dequantized(model, plan, target)
    notes += _keep_stored(prepared, plan)
    if prepared.keeps_half:
        narrow(model, prepared.widened)
    halved_on = None
    if recipe.half is not None:
        with timed("half"):
            halved = convert_to_precision16(model, plan, target, recipe, samples.data, settings)
        plan, halved_on = halved.plan, halved.samples
        notes += halved.notes
    FixShapes(prepared.fixed_shapes).run(model)
    if recipe.quantizes and not plan.stored and all(n.how == FLOAT for n in plan.nodes):
        notes.append(_why_nothing(model))
    stamp(model, prepared.record(recipe, plan, sampled=samples.recorded))
    if samples.data is not None and samples.data.random:
        model.set_metadata(RANDOM_KEY, "true")
        notes.append("calibrated on random data: scales are guesses, do not deploy this")
    return Rewritten(
        model, plan, float_model, sizes.report_entry(work), report_rows.with_plan(graph, plan), [*plan.skips, *refused],
        halved_on, tuple(notes),
    )  # fmt: skip


def _sizes(prepared: Prepared, data: Dataset | None) -> Sizes:
    """The tensor sizes that work is counted at: those of the first sample, else those of the fixed shapes."""
    model, inputs = prepared.model, prepared.fixed_shapes.inputs
    if data is not None and len(data):
        return sizes_on(model, data[0].feed, threads=prepared.settings.threads)
    fixed = {name: tuple(d if isinstance(d, int) else 1 for d in dims) for name, dims in inputs.items()}
    free = any(not isinstance(d, int) for dims in inputs.values() for d in dims)
    found = tensor_sizes(model, fixed)
    return replace(found, source=INFERRED if free else FROZEN) if found.source == SAMPLE else found


def _keep_stored(prepared: Prepared, plan: Plan) -> Iterable[str]:
    """Store weights that stay float in the integers that they came in; notes on what became of trained scales."""
    if not prepared.recipe.complete:
        return []
    keep = KeepIntegerWeights(prepared.trained)
    if prepared.target.stores_weights:
        keep.run(prepared.model)
    plan.kept.fates.update(dict.fromkeys(keep.names, ""))
    return [*keep_trained_scales.notes(prepared.trained, plan), *kept_integer_notes(keep.names)]


def _why_nothing(model: Model) -> str:
    """Say why nothing was quantized; some models, such as decision trees, have nothing to quantize."""
    nodes = [node for _, node in model.walk()]
    if any(is_weighted(node) or is_embedding(node) for node in nodes):
        return worded("nothing was quantized: [[report.skips|--report FILE]] says why, node by node")
    ops = list(dict.fromkeys(node.op for node in nodes))
    named = ", ".join(ops[:_NAMED]) + (f" and {len(ops) - _NAMED} more" if len(ops) > _NAMED else "")
    return f"{NOT_QUANTIZABLE}: no layer of the model multiplies with a weight; its operators: {named}"
