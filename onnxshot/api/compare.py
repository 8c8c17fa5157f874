"""`compare`: compare and time two models, whatever tool made them."""

from __future__ import annotations

from pathlib import Path

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.write_results import input_bytes
from onnxshot.difference.rescaled_channels import factors_between
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.precision16.bfloat16_emulation import runnable_on_cpu
from onnxshot.report.report import Report
from onnxshot.report.values import TensorReport
from onnxshot.results.model_source import ModelSource, model_files, name_of_source
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import stored_bytes
from onnxshot.settings import Settings, budgeted
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare as compare_outputs
from onnxshot.verification.compared_files import pair_notes, refuse_other_inputs
from onnxshot.verification.weight_sizes import record_weights


@checked
@budgeted
@one_blas_thread()
@blames_model
def compare(
    reference: ModelSource,
    candidate: ModelSource,
    calib: Calib | None,
    *,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Report:
    """Compare a model with its float original on all samples: outputs, tensors by name, int8 share and latency.

    Args:
        reference: The float model, as `quantize` takes it.
        candidate: The model made from it, such as the result of `quantize`.
        calib: Samples, as `quantize` takes them. They are all used, since it is not known which of them the candidate
            was calibrated on.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Threads, benchmark time.

    Returns:
        The report. SQNR is in dB, latency in milliseconds.

    Raises:
        UsageError: The candidate has other inputs than the reference.
        ModelError: A model cannot be read or run.
        CalibrationError: The data does not fit the reference.

    Example:
        >>> report = onnxshot.compare("model.onnx", "model.int8.onnx", "samples/")
        >>> report.sqnr_db, report.agreement
    """
    calib = with_transform(calib, transform)
    with model_files(reference, candidate) as (one, other):
        names = name_of_source(reference), name_of_source(candidate)
        report = _compared(one, other, names, calib, preset, settings or Settings())
    report.input, report.recipe = names[1], {"reference": names[0]}
    return report


def _compared(
    reference: Path,
    candidate: Path,
    names: tuple[str, str],
    calib: Calib | None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    settings: Settings,
) -> Report:
    """The report on two files. names: of both, in messages."""
    loaded = load_model(reference)
    other = of_model_file(candidate, "the candidate")
    settings.files.reading(*of_run(loaded, calib, preset), *other).check()
    report = Report(str(candidate), {"reference": str(reference)}, input_bytes=input_bytes(reference, loaded))
    made = load_model(candidate)
    refuse_other_inputs(loaded, made, names)
    report.notes += pair_notes(loaded, made, names)
    record_weights(report, loaded, made, stored_bytes(candidate))
    given = open_calib(calib, loaded, preset, settings, also=made)
    with given as data, runnable_on_cpu([reference, candidate]) as (runs, notes):
        reference, candidate = runs
        report.notes += [*(() if data.random else data.notes), *notes]
        # It is not known which samples the candidate was calibrated on, so none is reported as held out.
        report.samples = {"source": data.source, "random": data.random}
        factors = factors_between(reference, candidate)
        report.notes += factors.notes
        opened = OpenModels((reference, candidate), settings.threads)
        found = compare_outputs(
            reference, candidate, data, tensors=None, threads=settings.threads, scaled=factors.tensors,
            form=factors.form, opened=opened,
        )  # fmt: skip
        proof.record_comparison(report, found, random=data.random)
        report.worst = [
            TensorReport(row.tensor, row.op, row.sqnr_db, clipped=row.clipped, depth=row.depth) for row in found.tensors
        ]
        proof.record_execution(report, executed(candidate, sample=data[0].feed, threads=settings.threads))
        proof.record_latency(report, reference, candidate, data, settings, opened)
        proof.record_decoding(report, found.tokens, reference, candidate, data, settings)
    return report
