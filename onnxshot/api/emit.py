"""`emit`: a model in the format of a runtime, without compressing it; one that is quantized, in the target's form."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.batches import batched
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.output_files import is_external, of_options, of_result
from onnxshot.delivery.record import VERSION_KEY, versions
from onnxshot.delivery.write_results import deliver, input_bytes, source_name
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model, edit
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft, write
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.passes.fix_shapes import FixShapes
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.planning.make_plan import already_quantized
from onnxshot.precision16.bfloat16_emulation import computes_bfloat16
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.rewriting.model_inputs import fixed_shapes_for
from onnxshot.rewriting.retarget import retarget
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_versions import needs, runs_nowhere
from onnxshot.settings import Settings
from onnxshot.targets import target_named, target_of
from onnxshot.targets.base import Target
from onnxshot.targets.ort import ORT
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference, given, reference_of


@checked
@blames_model
def emit(
    model: str | Path | ModelProto,
    *,
    to: str | Sequence[str] | None = None,
    target: str = ORT.name,
    output: str | Path,
    calib: Any = None,
    preset: str | Preset | None = None,
    batch: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    options: EmitOptions | None = None,
    reference: str | Path | ModelProto | None = None,
    settings: Settings | None = None,
) -> Report:
    """Normalize a model without compressing it, and write it in one format or several, each with the output's stem.

    Quantization that the model comes with takes the form that the target of each format wants, as far as its answers
    stay the same; `skips` of the report name the nodes that the target refuses or runs slower as they are.

    Args:
        model: path of an .onnx file, or a ModelProto.
        to: onnx, openvino, tensorrt; by default what the suffix of `output` stands for.
        target: what the .onnx file is for; the other formats are for the target that has them.
        output: where to write.
        calib: samples that artifacts are held against the model on, as `quantize` takes them; random ones by default.
        preset: preprocessing of pictures.
        batch: the size that the batch dimension is frozen at.
        shapes: the sizes that all dimensions of an input are frozen at, by its name.
        options: how artifacts other than .onnx are made.
        reference: the float model that artifacts are held against; by default the one that is given.
        settings: how to run it.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    formats = artifacts.formats_of((to,) if isinstance(to, str) else to, Path(output), ORT)
    targets = {name: target_named(target) if name == artifacts.ONNX else target_of(name) for name in formats}
    main = targets.get(artifacts.ONNX, targets[formats[0]])
    place, loaded = artifacts.artifact_path(Path(output), artifacts.ONNX), load_model(model)
    files = settings.files.reading(*of_run(loaded, calib, preset), *of_model_file(reference, "the reference"))
    written = of_result(Path(output), formats, external=is_external(loaded), recorded=False)
    files.writing(*written, *of_options(options)).check()
    report = Report(source_name(model), {"emit": list(formats)}, input_bytes=input_bytes(model, loaded))
    sizes = fixed_shapes_for(loaded, batch, shapes or {})
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(open_calib(calib, loaded, preset, settings, sizes)) if calib is not None else None
        FixShapes(sizes).run(loaded)
        normalize(loaded)
        if settings.verify:  # which runs it
            refuse_giants(loaded)
        UndoLargeFolds().run(loaded)
        StoreOriginalDtype().run(loaded)
        edit.toposort(loaded)
        loaded.set_metadata(VERSION_KEY, versions()["onnxshot"])
        quantized = bool(already_quantized(loaded))
        original = loaded.to_proto() if quantized or (settings.verify and formats != (artifacts.ONNX,)) else None
        if data is not None and sizes:
            data = batched(data, sizes.inputs)
        inputs = {tensor.name: loaded.shape(tensor) for tensor in loaded.graph.inputs}
        how = artifacts.with_sample_sizes(options or EmitOptions(), formats, inputs, data)
        judge = _judge(model, reference, loaded, data, settings)
        report.notes += [judge.note] if judge.note else []
        changed = quantized and _retarget(loaded, main, report)
        if artifacts.ONNX in formats and main.runs_here:
            nowhere = runs_nowhere(loaded)
            report.onnxruntime = None if nowhere else needs(loaded)
            report.notes += [nowhere] if nowhere else []
        report.notes += loaded.notes
        judged: artifacts.Judged | None = None
        if settings.verify and (original is not None or data is not None):
            samples = data if data is not None else proof.random_data(judge.model, loaded)
            judged = artifacts.Judged(judge.model, samples) if samples is not None else None

        def others(written: Path) -> Iterator[AbstractContextManager[tuple[Draft, Artifact]]]:
            for name in formats:
                source = written
                if original is not None and quantized and targets[name] is not main:
                    other = load_model(original)
                    _retarget(other, targets[name], report)
                    source = stack.enter_context(scratch()) / written.name
                    write(other, source)
                yield from artifacts.make_artifacts(source, (name,), place, how, judged, settings)

        def prove(written: Draft) -> None:
            if sizes:
                proof.keeps_contract(model, written.path, sizes)
                proof.runs_frozen(written.path, loaded, model)
            asked = changed or (data is not None and loaded.weight_bytes() < proof.MAX_BYTES)
            if proof.loads(written.path, model) and asked and judged is not None:
                report.samples = {"source": judged.samples.source, "random": judged.samples.random}
                found = compare(
                    judged.reference, written.path, judged.samples, threads=settings.threads, sizes=sizes
                )
                proof.record_comparison(report, found, random=judged.samples.random)

        deliver(loaded, place, main.name, report, prove, others, keep=artifacts.ONNX in formats)
    report.seconds = time.perf_counter() - started
    return report


def _judge(
    source: str | Path | ModelProto,
    reference: str | Path | ModelProto | None,
    loaded: Model,
    data: Dataset | None,
    settings: Settings,
) -> Reference:
    """What artifacts are held against. Raises ModelError where normalizing the source has changed what it computes."""
    if not settings.verify or loaded.weight_bytes() >= proof.MAX_BYTES:
        return Reference(given(source if reference is None else reference))
    if computes_bfloat16(source):
        loaded = load_model(source)
        WidenPrecision16().run(loaded)
    own = reference_of(source, loaded, data, check=len(loaded.graph.nodes) < proof.MAX_NODES, threads=settings.threads)
    if reference is None:
        return own
    other = load_model(reference)
    normalize(other)
    return reference_of(reference, other, data, check=False, threads=settings.threads)


def _retarget(model: Model, target: Target, report: Report) -> bool:
    """Bring a quantized model into the target's form, and tell; whether anything has changed."""
    edits, skips = retarget(model, target)
    report.skips += skips
    report.notes.append(f"quantized already: {edits} edits brought it into the form of {target.name}")
    return bool(edits)
