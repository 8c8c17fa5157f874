"""`prune`: set weights to zero in one shot, let the others compensate, and compare the result with the float model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import data_suffix, of_result
from onnxshot.delivery.record import record, source_of, stamp
from onnxshot.delivery.write_results import deliver, input_bytes, source_name
from onnxshot.errors import ModelError
from onnxshot.execution import candidate_race
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import NodeMacs, by_label
from onnxshot.graph.save import Draft
from onnxshot.graph.weight_sparsity import layers_of, sparsity_notes
from onnxshot.precision16.bfloat16_emulation import in_float32
from onnxshot.pruning.layerwise_pruning import PrunableLayer, PrunedLayer
from onnxshot.pruning.prunable_model import PrunableModel, prunable_model
from onnxshot.pruning.prune_model import (
    apply,
    by_magnitude_alone,
    kept_finite,
    nonempty_feeds,
    pruned_layers,
    refuse_lost_zeros,
    restore_form,
)
from onnxshot.pruning.sparsity_per_layer import zero_counts
from onnxshot.recipes.stages import PruneScope, PruneStage, Stages
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.results.pruned import LayerSparsity, PruneReport, PruneResult
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.settings import Settings, budgeted
from onnxshot.verification import proof, report_rows
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference, reference_of


@checked
@budgeted
@one_blas_thread()
@blames_model
def prune(
    model: ModelSource,
    calib: Calib | None = None,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: PruneScope | None = None,
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    layers: Mapping[str, float] | None = None,
    keep_zeros: bool = False,
    settings: Settings | None = None,
) -> PruneResult:
    """Set weights of Conv, Gemm and MatMul to zero in one shot, and compare the result with the float model.

    With samples, the remaining weights of each layer are refitted to the float model's outputs by least squares;
    nothing is trained.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: Calibration data, as `quantize` takes it; a quarter is held out to judge the result. Without data,
            weights are pruned by magnitude and nothing compensates for the zeros.
        sparsity: Share of the weights of all prunable layers that becomes zero, in [0, 1). An N:M pattern fixes it.
        pattern: 'unstructured'; 'N:M' (N of M neighbouring inputs remain); 'block:RxC' (R outputs by C inputs).
        scope: How zeros are distributed over layers: 'layer' (equal sparsity), 'global' (one threshold for all), 'erk'
            (Erdos-Renyi-Kernel) or 'auto' (measured, needs data). Default: 'auto' with data, else 'layer'.
        output: Path to write to. With None the result stays in memory.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        include: Globs over node names, tensor names and operators. If given, only matching layers are pruned.
        exclude: Globs of layers that are not pruned.
        layers: Glob -> sparsity of the matching layers. The other layers make up the rest of `sparsity`.
        keep_zeros: Weights that are zero stay zero, and count as zeros.
        settings: Threads, verification.

    Returns:
        The pruned model and a report with one row per layer.

    Raises:
        UsageError: The arguments contradict each other, a glob matches nothing, or there is nothing to prune.
        ModelError: The model cannot be read or run, or the pruned model has outputs that are not finite.
        CalibrationError: The data does not fit the model.

    Example:
        >>> result = onnxshot.prune("model.onnx", "calib/", sparsity=0.5)
        >>> result.save("model.sparse.onnx")
    """
    calib = with_transform(calib, transform)
    started, settings = time.perf_counter(), settings or Settings()
    made_from, model = origin_of(model), plain_source(model)
    asked = PruneStage.from_dict(
        {
            "sparsity": sparsity, "pattern": pattern, "scope": scope, "layers": layers or {}, "include": include,
            "exclude": exclude, "keep_zeros": keep_zeros,
        }
    ).resolved(calib is not None)  # fmt: skip
    report = PruneReport(source_name(model), Stages((asked,)).to_dict())
    loaded = load_model(model)
    report.input_bytes = input_bytes(model, loaded)
    with report.timed("normalize"):
        prunable = prunable_model(model, loaded, asked)
    report.notes += prunable.notes
    report.skips = list(prunable.skips)
    files = settings.files.reading(*made_from, *of_run(loaded, calib, preset))
    if output is not None:
        files = files.writing(*of_result(output, data=data_suffix(loaded)))
    files.check()
    opened = contextlib.nullcontext() if calib is None else open_calib(calib, loaded, preset, settings)
    with opened as data, KeptArrays() as kept:
        reference: Reference | None = None
        feeds: Feeds = ()
        held_out: list[int] = []
        if data is not None:
            reference = _reference(prunable, data, report, settings)
            feeds, held_out = _split(data, report)
        with report.timed("allocate"):
            zeros = zero_counts(prunable, asked, feeds, settings)
        report.notes += [zeros.note] if zeros.note else []
        with report.timed("prune"):
            pruned = pruned_layers(prunable, zeros.counts, asked, feeds, settings, kept)
        if data is not None:
            with report.timed("keep finite"):
                pruned = kept_finite(prunable, pruned, zeros.counts, asked, feeds, data, settings, kept)
        work = _apply(prunable, pruned, data, report, settings)
        stamp(loaded, record(asked, prunable.source_hash, settings, sampled=data is not None))

        def prove(written: Draft) -> None:
            kept.release()
            refuse_lost_zeros(written, {name: _zeros(layer) for name, layer in pruned.items()})
            _measure_packing(prunable, work, report)
            if not settings.verify:
                return
            proof.keeps_contract(model, written.path)
            if data is None or reference is None:
                proof.loads(written.path, model)
                return
            judges = data.subset(held_out or range(len(data)))
            with report.timed("verify"):
                _compare(prunable, reference, written, judges, report, settings)
                by_magnitude = by_magnitude_alone(prunable, zeros.counts, asked.parsed_pattern)
                _compare_by_magnitude(by_magnitude, reference, judges, report, settings)

        deliver(loaded, output, "ort", report, prove, source=source_of(calib, preset, data))
    report.seconds = time.perf_counter() - started
    return PruneResult(loaded, report)


def _reference(prunable: PrunableModel, data: Dataset, report: PruneReport, settings: Settings) -> Reference:
    """The model that outputs are compared with. Raises ModelError if normalization has changed the outputs."""
    report.notes += data.notes
    with report.timed("normalize"):
        found = reference_of(prunable.source, prunable.model, data, check=settings.verify, threads=settings.threads)
    report.notes += [found.note] if found.note else []
    return found


def _split(data: Dataset, report: PruneReport) -> tuple[Feeds, list[int]]:
    """(Samples to prune on, numbers of the held-out samples)."""
    numbers, held_out = split(len(data), HOLDOUT)
    feeds = list(nonempty_feeds(data, numbers))
    if not feeds:
        report.notes.append("pruned by magnitude alone: an input of every sample is empty")
    report.samples = {
        "calibration": len(feeds), "held_out": len(held_out), "source": data.source, "random": data.random,
    }  # fmt: skip
    return feeds, held_out


def _apply(
    prunable: PrunableModel,
    pruned: Mapping[str, PrunedLayer],
    data: Dataset | None,
    report: PruneReport,
    settings: Settings,
) -> list[NodeMacs]:
    """Put the pruned weights into the model, report its sparsity, and return the work of its nodes."""
    model = prunable.model
    report.notes += [f"{name!r}: {layer.note}" for name, layer in pruned.items() if layer.note]
    report.layers = [_row(prunable, layer, pruned[layer.name]) for layer in prunable.layers]
    total = sum(row.weights for row in report.layers)
    report.sparsity = sum(row.sparsity * row.weights for row in report.layers) / total
    apply(prunable, dict(pruned))
    report.sparsity_of_all = proof.sparsity(model)
    first = data[0].feed if data is not None and len(data) else None
    work = sizes_on(model, first, threads=settings.threads).work(model)
    report.graph = report_rows.graph_rows(model, work)
    restore_form(prunable)
    if report.samples.get("random"):
        report.notes.append("pruned on random data: the refitted weights are unreliable")
    return work


def _zeros(layer: PrunedLayer) -> int:
    """Number of zeros in the weight of a layer."""
    return int((layer.weight == 0).sum())


def _row(prunable: PrunableModel, layer: PrunableLayer, pruned: PrunedLayer) -> LayerSparsity:
    """The row of a layer in the report."""
    before = int((prunable.tables[layer.name] == 0).sum())
    return LayerSparsity(
        layer.name, layer.op, layer.size, _zeros(pruned) / layer.size, before / layer.size, pruned.refitted
    )


def _compare(
    prunable: PrunableModel,
    reference: Reference,
    written: Draft,
    judges: Dataset,
    report: PruneReport,
    settings: Settings,
) -> None:
    """Compare the written model with the reference on held-out samples. Raises ModelError for non-finite outputs."""
    with in_float32(written.path, wanted=prunable.widened.runs_nowhere) as runs:
        compared = compare(reference.model, runs, judges, threads=settings.threads)
    proof.record_comparison(report, compared, random=judges.random)
    if compared.not_finite:
        raise ModelError(f"nothing is written: {compared.not_finite[0]}", "prune less, or other layers")


def _compare_by_magnitude(
    by_magnitude: LeanModel,
    reference: Reference,
    judges: Dataset,
    report: PruneReport,
    settings: Settings,
) -> None:
    """Report the SQNR of magnitude pruning with the same number of zeros per layer, for comparison."""
    (found,) = candidate_race.measure_candidates(
        reference.model, [by_magnitude], list(judges), threads=settings.threads
    )
    report.magnitude_sqnr_db = None if judges.random else found.total.db


def _measure_packing(prunable: PrunableModel, work: list[NodeMacs], report: PruneReport) -> None:
    """Report the compressed sizes of the weights before and after, and what the zeros bring on each target."""
    macs = by_label(work)
    before, after = layers_of(prunable.before.to_graph(), macs), layers_of(prunable.model, macs)
    report.packed_bytes = (sum(x.packed_bytes for x in before), sum(x.packed_bytes for x in after))
    report.worth = sparsity_notes(after)
