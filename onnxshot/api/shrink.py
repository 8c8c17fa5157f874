"""`shrink`: structured pruning of channels, heads, hidden units and branches, in one shot, until a target is met."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.checks import Sample
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.channels.candidate_models import CandidateBuilder
from onnxshot.channels.finish import amount_of, restore_form
from onnxshot.channels.importance import initial_allocation, removal_curves
from onnxshot.channels.original import Original, Samples, Structure, original_of, samples_of, sizes_of, structure_of
from onnxshot.channels.output_error import OutputErrors
from onnxshot.channels.removal import Removal, nothing, recorded_samples, removal_from_record
from onnxshot.channels.stage_seconds import timed
from onnxshot.channels.target_search import Found, search
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import data_suffix, of_result
from onnxshot.delivery.record import record, source_of, stamp
from onnxshot.delivery.write_results import source_name
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.passes.unshare import Reshare
from onnxshot.recipes.stages import Importance, Multiple, ShrinkScope, ShrinkStage
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.results.shrink_findings import add_found, add_latency, add_missed
from onnxshot.results.shrunk import ShrinkReport, ShrinkResult
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.search.goal import Evaluate, name_of
from onnxshot.settings import Settings, budgeted
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference, reference_of


@checked
@budgeted
@one_blas_thread()
@blames_model
def shrink(
    model: ModelSource,
    calib: Calib | None = None,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    max_drop: float | None = None,
    evaluate: Evaluate | str | None = None,
    scope: ShrinkScope = "all",
    multiple: Multiple = 8,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    importance: Importance = "auto",
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> ShrinkResult:
    """Remove channels, hidden units, heads and residual branches from a float model until one target is met.

    The remaining weights are fitted to the outputs of the full model, layer by layer; nothing is trained. Give exactly
    one of `target_flops`, `target_params`, `target_latency` and `max_drop`.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: Calibration data, as `quantize` takes it; at most 256 samples are used. Without data, channels are ranked
            by the norm of their weights, and nothing is fitted.
        target_flops: Share of the multiply-accumulates to keep, in (0, 1]. The choice also takes the time of the layers
            into account, which is measured. Two runs may therefore differ where times are close.
        target_params: Share of the parameters to keep, in (0, 1].
        target_latency: Share of the latency in ONNX Runtime to keep, in (0, 1]. Both models are timed in interleaved
            runs on this machine.
        max_drop: Largest drop of the score of `evaluate`, in its units. The model is reduced step by step as far as the
            drop allows.
        evaluate: The score, as in `Goal`.
        scope: 'all'; 'mlp': only hidden units of MLPs; 'heads': only attention heads.
        multiple: 1, 8 or 16. Layers keep a multiple of this many channels if they have that many.
        include: Globs over layer names, as in `quantize`. Only the outputs of these layers are pruned.
        exclude: Globs over layer names. The outputs of these layers are not pruned.
        importance: How channels are ranked. 'error': the error of the layers that read a channel after the other
            weights have compensated for it. 'activation': the weights that read it times its root mean square on the
            samples. 'batchnorm': |gamma| of the BatchNormalization behind its layer; channels without one are kept.
            'l1', 'l2': the norm of its weights. 'auto': 'error' with data, else 'l2'.
        output: Path to write to. With None the result stays in memory.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Threads, verification, benchmark time.

    Returns:
        The smaller model and a report with one row per group.

    Raises:
        UsageError: The arguments contradict each other, or a glob matches nothing.
        ModelError: The model cannot be read or run.
        CalibrationError: The data does not fit the model.

    Note:
        Residual branches are removed as a whole if that reduces the output error of the fitted model. This needs data,
        scope 'all' and no `include`.

        Memory: the samples, and what `settings.memory` allows. Weights that change, activations and second moments wait
        in temporary files beyond their share of it. Groups of layers whose second moments exceed it are ranked without
        compensation, and layers with many inputs are fitted in blocks of inputs; notes name both.

    Example:
        >>> result = onnxshot.shrink("model.onnx", "calib/", target_flops=0.7)
        >>> result.save("model.small.onnx")
    """
    calib = with_transform(calib, transform)
    started, settings = time.perf_counter(), settings or Settings()
    made_from, model = origin_of(model), plain_source(model)
    asked = ShrinkStage.from_dict(
        {
            "target_flops": target_flops, "target_params": target_params, "target_latency": target_latency,
            "max_drop": max_drop, "evaluate": None if evaluate is None else name_of(evaluate), "scope": scope,
            "multiple": multiple, "include": include, "exclude": exclude, "importance": importance,
        }
    ).resolved(calib is not None)  # fmt: skip
    report = ShrinkReport(source_name(model), asked.targets)
    original = original_of(model, asked)
    files = settings.files.reading(*made_from, *of_run(original.model, calib, preset, evaluate=evaluate))
    if output is not None:
        files = files.writing(*of_result(output, data=data_suffix(original.model)))
    files.check()
    with open_calib("random" if calib is None else calib, original.model, preset, settings) as data:
        reference = _reference(original, data, report, settings)
        samples = _samples(data, report, settings) if calib is not None else Samples()
        structure = _structure(original, samples, asked, report, settings)
        found = None
        if structure.eligible.groups:
            builder = _builder(original, reference, samples, structure, report, settings)
            found = _search(builder, original, structure, asked, data, evaluate, report)
            if samples.checks and settings.verify and not data.random:
                with timed(report.timings, "verify"):
                    _compare(reference, found.model, samples, report, settings)
        result = _result(
            original, samples, structure, asked, report, settings,
            None if found is None else (found.allocation.as_removal(), found.model),
        )  # fmt: skip
        report.seconds = time.perf_counter() - started
        if output is not None:
            report.output = str(output)
            result.deliver(Path(output), source_of(calib, preset, data if calib is not None else None))
    return result


def shrink_as_recorded(
    model: str | Path, data: Dataset | None, asked: ShrinkStage, decided: Mapping[str, Any], settings: Settings
) -> ShrinkResult:
    """Remove what an earlier run removed, and fit the remaining weights again; nothing is ranked, timed or searched.

    Args:
        model: Path of an .onnx file.
        data: The opened samples; None if the earlier run had none.
        asked: The stage, resolved.
        decided: What the earlier run removed, from its record.
        settings: Threads, verification.

    Returns:
        The model, and a report without groups.

    Raises:
        UsageError: What was recorded does not fit the model. Also everything that `shrink` raises.
    """
    started, report = time.perf_counter(), ShrinkReport(source_name(model), asked.targets)
    original = original_of(model, asked)
    used = recorded_samples(decided)
    reference = _reference(original, data, report, settings)
    samples = Samples()
    if data is not None:
        # one of several stages learned from those that are not held out, a run of its own from all
        numbers = split(len(data), HOLDOUT)[0] if used < len(data) else range(len(data))
        samples = _samples(data.subset(numbers), report, settings)
    structure = _structure(original, samples, asked, report, settings)
    made = None
    if structure.eligible.groups:
        builder = _builder(original, reference, samples, structure, report, settings)
        removal = removal_from_record(decided, builder.axes, structure.eligible)
        report.branches = [branch.name for branch in removal.branches]
        made = removal, builder.build(removal)
    result = _result(original, samples, structure, asked, report, settings, made)
    report.seconds = time.perf_counter() - started
    return result


def _reference(original: Original, data: Dataset | None, report: ShrinkReport, settings: Settings) -> Reference:
    """The model that outputs are compared with. Raises ModelError if normalization has changed the outputs."""
    report.notes += original.notes
    with timed(report.timings, "normalize"):
        found = reference_of(original.source, original.model, data, check=settings.verify, threads=settings.threads)
    report.notes += [found.note] if found.note else []
    return found


def _samples(data: Dataset, report: ShrinkReport, settings: Settings) -> Samples:
    """Read the samples."""
    samples = samples_of(data, settings.threads)
    report.notes += data.notes
    report.samples = samples.used
    return samples


def _structure(
    original: Original, samples: Samples, asked: ShrinkStage, report: ShrinkReport, settings: Settings
) -> Structure:
    """Find the channels that may be removed."""
    sizes = sizes_of(original.model, samples, settings.threads)
    structure = structure_of(original.model, sizes, asked, sampled=samples.given > 0)
    report.sizes = sizes.report_entry(sizes.work(original.model))
    report.skips = list(structure.eligible.skips)
    return structure


def _builder(
    original: Original,
    reference: Reference,
    samples: Samples,
    structure: Structure,
    report: ShrinkReport,
    settings: Settings,
) -> CandidateBuilder:
    """What builds candidates; it adds to the timings of the report."""
    return CandidateBuilder(
        original.model, LeanModel.of(original.model), reference, structure.groups.axes, samples.fit, samples.checks,
        OutputErrors(reference.model, samples.checks, settings.threads), settings, report.timings, report.notes,
    )  # fmt: skip


def _search(
    builder: CandidateBuilder,
    original: Original,
    structure: Structure,
    asked: ShrinkStage,
    data: Dataset,
    evaluate: Evaluate | str | None,
    report: ShrinkReport,
) -> Found:
    """Rank the channels, and search for the removal that meets the target."""
    with timed(report.timings, "weigh"):
        curves, skips = removal_curves(builder, structure.eligible.groups, asked, original.scales)
    report.skips += skips
    ((name, value),) = asked.targets.items()
    initial = initial_allocation(builder, curves, asked, structure.sizes.shapes)
    found = search(builder, initial, (name, value), structure.eligible.branches, data, evaluate)
    add_found(report, found, asked)
    if builder.settings.verify and found.allocation.as_removal().removed:
        with timed(report.timings, "bench"):
            report.float_ms, latency = builder.latency(found.model, data)
        add_latency(report, latency, found.allocation, asked)
    return found


def _compare(
    reference: Reference, model: Model, samples: Samples, report: ShrinkReport, settings: Settings
) -> None:
    """Compare the smaller model with the given one on the samples that were set aside; of few samples, none are."""
    judged = [Sample(f"#{number}", dict(feed)) for number, feed in enumerate(samples.checks)]
    found = compare(reference.model, LeanModel.of(model), judged, threads=settings.threads)
    report.sqnr_db, report.agreement = found.sqnr_db, found.agreement
    report.compared, report.cases = found.samples, found.cases
    if len(samples.checks) == samples.used:
        report.notes.append("it was judged on the samples that its weights were fitted on: give more")


def _result(
    original: Original,
    samples: Samples,
    structure: Structure,
    asked: ShrinkStage,
    report: ShrinkReport,
    settings: Settings,
    made: tuple[Removal, Model] | None,
) -> ShrinkResult:
    """Give the smaller model its final form and its record. made: None if nothing can be removed."""
    axes, threads = structure.groups.axes, settings.threads
    before = amount_of(original.model, samples, threads)
    if made is None:
        add_missed(report, "nothing was cut: no group of channels can be removed; the skips give the reasons")
        removal, model, after = nothing(axes), load_model(original.source), before
    else:
        removal, model = made
        Reshare().run(model)
        after = amount_of(model, samples, threads)
        restore_form(original, model)
    original.model.check_files()
    report.macs, report.params = (before.macs, after.macs), (before.params, after.params)
    decided = {"samples": samples.given, **removal.to_record(axes)}
    stamp(model, record(asked, original.source_hash, settings, decided, sampled=samples.given > 0))
    return ShrinkResult(model, report)
