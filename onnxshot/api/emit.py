"""`emit`: write a model in the format of a runtime without compressing it, with Q/DQ pairs in the form it reads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.batches import batched
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.tokenizer import tokenizer_beside, with_tokenizer
from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.output_files import data_suffix, of_options, of_result
from onnxshot.delivery.record import VERSION_KEY, versions
from onnxshot.delivery.write_results import deliver, input_bytes, source_name
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model, edit
from onnxshot.graph.fixed_shapes import FixedShapes
from onnxshot.graph.load import copy_of, load_model
from onnxshot.graph.save import Draft, write
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.passes.fix_shapes import FixShapes
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.planning.make_plan import already_quantized
from onnxshot.precision16.bfloat16_emulation import computes_bfloat16
from onnxshot.recipes.vocabulary import FormatName, TargetName
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.rewriting.model_inputs import fixed_shapes_for, plain_preset
from onnxshot.rewriting.retarget import retarget
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_versions import needs, runs_nowhere
from onnxshot.settings import Settings, budgeted
from onnxshot.targets import target_named, target_of
from onnxshot.targets.base import Target
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference, given, reference_of


@checked
@budgeted
@one_blas_thread()
@blames_model
def emit(
    model: ModelSource,
    *,
    to: FormatName | Sequence[FormatName] | None = None,
    target: TargetName = ORT.name,
    output: str | Path,
    calib: Calib | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    batch: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    options: EmitOptions | None = None,
    reference: ModelSource | None = None,
    settings: Settings | None = None,
) -> Report:
    """Normalize a model without compressing it, and write it in one or several formats.

    If the model is quantized, its Q/DQ pairs are rewritten to the form that the target of each format reads, as far as
    the outputs stay the same. `skips` of the report lists the nodes that the target refuses or runs slower.

    Args:
        model: Path of an .onnx file, a ModelProto, its bytes, or a result.
        to: 'onnx', 'openvino', 'tensorrt', or several of them. Default: what the suffix of `output` stands for.
        target: Target of the .onnx file. Other formats have a target of their own.
        output: Path to write to; other formats take its stem.
        calib: Samples to compare artifacts with the model on, as `quantize` takes them. Default: random ones.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        batch: Fixed size of the batch dimension.
        shapes: Fixed shape of an input, by input name.
        options: How artifacts other than .onnx are built.
        reference: The float model to compare artifacts with. Default: `model`.
        settings: Threads, verification.

    Returns:
        The report, with one entry of `outputs` per file.

    Raises:
        UsageError: The arguments contradict each other or the model, or a file cannot be written.
        ModelError: The model cannot be read, or the written file is not equivalent to it.
        CalibrationError: The data does not fit the model.
        TargetError: There is no such target or format, or its runtime is not installed.

    Example:
        >>> report = onnxshot.emit("model.onnx", to="openvino", output="model.xml")
        >>> [artifact.path for artifact in report.outputs]
        ['model.xml']
    """
    calib = with_transform(calib, transform)
    started = time.perf_counter()
    made_from, model = origin_of(model), plain_source(model)
    reference = None if reference is None else plain_source(reference)
    settings = settings or Settings()
    formats = artifacts.formats_of((to,) if isinstance(to, str) else to, Path(output), ORT)
    targets = {name: target_named(target) if name == artifacts.ONNX else target_of(name) for name in formats}
    main = targets.get(artifacts.ONNX, targets[formats[0]])
    place, loaded = artifacts.artifact_path(Path(output), artifacts.ONNX), load_model(model)
    reads = (*made_from, *of_run(loaded, calib, preset), *of_model_file(reference, "the reference"))
    files = settings.files.reading(*reads)
    written = of_result(output, formats, data=data_suffix(loaded), recorded=False)
    files.writing(*written, *of_options(options)).check()
    report = Report(source_name(model), {"emit": list(formats)}, input_bytes=input_bytes(model, loaded))
    sizes = fixed_shapes_for(loaded, batch, shapes or {})
    with contextlib.ExitStack() as stack:
        reading = plain_preset(preset)
        reading = reading if tokenizer_beside(loaded.path) is not None else with_tokenizer(reading, reference)
        data = stack.enter_context(open_calib(calib, loaded, reading, settings, sizes)) if calib is not None else None
        _normalize(loaded, sizes, settings)
        quantized = bool(already_quantized(loaded))
        # The model before its Q/DQ pairs take the form of the main target.
        untargeted = copy_of(loaded) if quantized or (settings.verify and formats != (artifacts.ONNX,)) else None
        if data is not None and sizes:
            data = batched(data, sizes.inputs)
        inputs = {tensor.name: loaded.shape(tensor) for tensor in loaded.graph.inputs}
        how = artifacts.with_sample_sizes(options or EmitOptions(), formats, inputs, data)
        expected = _reference(model, reference, loaded, data, settings)
        report.notes += [expected.note] if expected.note else []
        changed = quantized and _retarget(loaded, main, report)
        if artifacts.ONNX in formats and main.runs_here:
            _report_versions(loaded, report)
        report.notes += loaded.notes
        compares = settings.verify and (untargeted is not None or data is not None)
        judged = _judged(expected, data, loaded) if compares else None

        def others(written: Path) -> Iterator[AbstractContextManager[tuple[Draft, Artifact]]]:
            for name in formats:
                source = written
                if untargeted is not None and quantized and targets[name] is not main:
                    source = stack.enter_context(scratch()) / written.name
                    _write_for(targets[name], untargeted, source, report)
                yield from artifacts.make_artifacts(source, (name,), Path(output), how, judged, settings)

        def prove(written: Draft) -> None:
            if sizes:
                proof.keeps_contract(model, written.path, sizes)
                proof.runs_frozen(written.path, loaded, model)
            asked = changed or data is not None
            if proof.loads(written.path, model) and asked and judged is not None:
                _compare(judged, written, sizes, report, settings)

        deliver(loaded, place, main.name, report, prove, others, keep=artifacts.ONNX in formats)
    report.seconds = time.perf_counter() - started
    return report


def _normalize(model: Model, sizes: FixedShapes, settings: Settings) -> None:
    """Fix input sizes, normalize the model, and give it the form it is written in."""
    FixShapes(sizes).run(model)
    normalize(model)
    if settings.verify:  # verification runs the model
        refuse_giants(model)
    UndoLargeFolds().run(model)
    StoreOriginalDtype().run(model)
    edit.toposort(model)
    model.set_metadata(VERSION_KEY, versions()["onnxshot"])


def _reference(
    source: str | Path | ModelProto,
    reference: str | Path | ModelProto | None,
    loaded: Model,
    data: Dataset | None,
    settings: Settings,
) -> Reference:
    """The model that artifacts are compared with. Raises ModelError if normalization has changed the outputs."""
    if not settings.verify:
        return Reference(given(source if reference is None else reference))
    if computes_bfloat16(source):
        loaded = load_model(source)
        WidenPrecision16().run(loaded)
    own = reference_of(source, loaded, data, check=True, threads=settings.threads)
    if reference is None:
        return own
    other = load_model(reference)
    normalize(other)
    return reference_of(reference, other, data, check=False, threads=settings.threads)


def _retarget(model: Model, target: Target, report: Report) -> bool:
    """Rewrite the Q/DQ pairs of a model to the form that the target reads; return whether anything changed."""
    edits, skips = retarget(model, target)
    report.skips += skips
    report.notes.append(f"quantized already: {edits} edits brought it into the form of {target.name}")
    return bool(edits)


def _write_for(target: Target, model: Model, path: Path, report: Report) -> None:
    """Write a quantized model in the form that another target reads."""
    other = copy_of(model)
    _retarget(other, target, report)
    write(other, path)


def _report_versions(model: Model, report: Report) -> None:
    """Report which versions of ONNX Runtime run the model, or why none does."""
    nowhere = runs_nowhere(model)
    report.onnxruntime = None if nowhere else needs(model)
    report.notes += [nowhere] if nowhere else []


def _judged(expected: Reference, data: Dataset | None, model: Model) -> artifacts.Judged | None:
    """The reference with samples to compare on: those given, else random ones; None if it runs on no random sample."""
    samples = data if data is not None else proof.random_data(expected.model, model)
    return artifacts.Judged(expected.model, samples) if samples is not None else None


def _compare(
    judged: artifacts.Judged, written: Draft, sizes: FixedShapes, report: Report, settings: Settings
) -> None:
    """Compare the written .onnx file with the reference."""
    samples = judged.samples
    report.samples = {"source": samples.source, "random": samples.random}
    found = compare(judged.reference, written.path, samples, threads=settings.threads, sizes=sizes)
    proof.record_comparison(report, found, random=samples.random)
