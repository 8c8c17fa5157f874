"""All stages between preparing a float model and writing the quantized one, in order, with a report of them.

`quantize` runs them once. They run again for another recipe where the first result is too large, is compared with one
for ONNX Runtime alone, or falls short so that others are tried.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from onnxshot.calibration.readers import Dataset, split
from onnxshot.delivery.write_results import source_name
from onnxshot.execution.collect import runs_in_parts
from onnxshot.execution.statistics_source import RunStatistics
from onnxshot.graph import Model
from onnxshot.planning.finite_weights import refuse_not_finite
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.report import Report
from onnxshot.stages.balance_columns import balance_columns
from onnxshot.stages.check_normalized import check_normalized
from onnxshot.stages.improve_plan import FinalPlan, improve_plan
from onnxshot.stages.observe import observe
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.place_by_time import place_by_time
from onnxshot.stages.prepare_model import Prepared
from onnxshot.stages.rewrite_model import rewrite_model
from onnxshot.stages.round_weights import round_weights
from onnxshot.stages.settle_forms import settle_forms
from onnxshot.stages.settle_lstms import settle_lstms
from onnxshot.verification.reference import Reference
from onnxshot.wording import worded

_IN_PARTS = "the model runs in parts, by its size and [[memory]]; with other parts the last bits of scales can differ"


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized model that is not written yet, with all that its proof needs.

    Attributes:
        samples: what it was calibrated on.
        reference: the model that its outputs are compared with; None where nothing is compared.
        gathered: the statistics that its scales come from; None where nothing was observed.
        final: what it was rewritten by.
        model: the quantized model.
        plan: what was done to each node.
        float_model: the model that the plan was made for; its channels may have other scales than the given model's.
        held_out: numbers of the samples that nothing was learned from; empty: all samples.
        report: what is known so far; the proof adds its figures.
        unplaced: the recipe before nodes went back to float by their times.
    """

    samples: Samples
    reference: Reference | None
    gathered: RunStatistics | None
    final: FinalPlan
    model: Model
    plan: Plan
    float_model: Model
    held_out: list[int]
    report: Report
    unplaced: Recipe

    @property
    def prepared(self) -> Prepared:
        """What was asked for, and the target; its model is the quantized one by now."""
        return self.final.prepared


def make_quantized(prepared: Prepared, samples: Samples, reference: Reference | None = None) -> Quantized:
    """Plan, observe, improve and rewrite a prepared model, which is changed in place.

    Args:
        prepared: the model.
        samples: what it is calibrated on.
        reference: what an earlier result from the same source is compared with; None to check the normalized model and
            find one.

    Raises:
        ModelError: normalizing has changed the outputs, or the model does not run on the samples.
        CalibrationError: the samples or the statistics do not fit the model.
        UsageError: a pattern of the recipe matches nothing, or weights that are to be quantized are not finite.
    """
    data = samples.data
    report = Report(source_name(prepared.source), prepared.recipe.to_dict(), input_bytes=prepared.source_bytes)
    report.accepted = prepared.settings.accept
    report.notes += [*prepared.notes, *samples.notes]
    report.timings["normalize"] = prepared.seconds

    with report.timed("choose forms"):
        prepared, notes = settle_forms(prepared, data)
    report.notes += notes

    if reference is None:
        reference = check_normalized(prepared, data, report.timed)
    report.notes += [reference.note] if reference is not None and reference.note else []

    with report.timed("balance"):
        report.notes += balance_columns(prepared, samples)

    with report.timed("try LSTMs"):
        prepared, notes = settle_lstms(prepared, data, reference)
    report.notes += notes
    report.recipe = prepared.recipe.to_dict()

    plan = prepared.plan()
    refuse_not_finite(prepared.model, plan)
    gathered = observe(prepared, plan, samples, report.timed)
    if gathered is not None and runs_in_parts(prepared.model):
        report.notes.append(worded(_IN_PARTS))
    report.notes += gathered.notes if gathered is not None else ()

    unplaced = prepared.recipe
    with report.timed("place"):
        evidence = Evidence({} if gathered is None else gathered.statistics.tensors)
        placed = place_by_time(prepared, plan, gathered, samples, evidence)
    prepared = placed.prepared
    report.recipe, report.placed = prepared.recipe.to_dict(), dict(placed.row)
    report.notes += placed.notes
    if placed.row:
        if gathered is not None and gathered.kept is not None:
            gathered.kept.close()
        plan = prepared.plan()
        gathered = observe(prepared, plan, samples, report.timed)
        evidence = Evidence({} if gathered is None else gathered.statistics.tensors)

    final = improve_plan(prepared, plan, gathered, samples, reference, report.timed, evidence, placed.times)
    final = round_weights(final, samples, report.timed)
    gathered = final.gathered or gathered
    report.notes += final.notes
    report.look = [dict(row) for row in final.look]

    rewritten = rewrite_model(final, samples, report.timed)
    report.notes += rewritten.notes
    report.sizes, report.graph, report.skips = rewritten.sizes, rewritten.graph, rewritten.skips

    held_out: list[int] = []
    if gathered is not None:
        held_out, known = gathered.held_out, gathered.statistics
        used = len(known.samples) if data is None else len(gathered.calibrated)
        inferences = gathered.inferences + final.inferences
        unseen = [i for i in held_out if i not in set(gathered.calibrated)]  # a single sample is both
        report.samples = _samples_row(samples, used, known.considered + len(gathered.choosing), unseen, inferences)
        if data is not None and not data.random and unseen and (copies := _copies(data, unseen, known.samples)):
            report.samples["copies"] = copies
    elif (final.learned_on or rewritten.halved_on is not None) and data is not None:
        held_out, used = split(len(data))[1], max(final.learned_on, rewritten.halved_on or 0)
        report.samples = _samples_row(samples, used, len(data) - len(held_out), held_out, used)
    return Quantized(
        samples, reference, gathered, final, rewritten.model, rewritten.plan, rewritten.float_model, held_out, report,
        unplaced,
    )  # fmt: skip


def _copies(data: Dataset, held_out: list[int], calibrated: Collection[str]) -> int:
    """How many held-out samples have the content of one that was calibrated on."""
    used = set(calibrated)
    return sum(digest in used for digest in data.subset(held_out).digests())


def _samples_row(samples: Samples, used: int, considered: int, held_out: list[int], inferences: int) -> dict[str, Any]:
    """What the report says of the samples."""
    data = samples.data
    return {
        "calibration": used,
        "considered": considered,
        "held_out": len(held_out),
        "inferences": inferences,
        "source": str(samples.stats) if data is None else data.source,
        "random": data is not None and data.random,
    }
