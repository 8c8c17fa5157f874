"""`quantize`: prepare the float model, open samples, make the quantized model, write it, prove it, publish it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery import artifacts
from onnxshot.delivery.artifacts import Judged
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import data_suffix, of_options, of_result
from onnxshot.delivery.record import source_of
from onnxshot.delivery.write_results import deliver
from onnxshot.errors import UsageError
from onnxshot.files.links import named_file
from onnxshot.graph import Model
from onnxshot.graph.save import Draft
from onnxshot.planning.node_recipe import with_measured_reasons
from onnxshot.recipes.recipe import Recipe, with_mode
from onnxshot.recipes.recipe_options import RecipeOptions, listed
from onnxshot.recipes.vocabulary import FormatName
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.results.model_source import ModelSource, origin_of, plain_source
from onnxshot.results.quantized import Result
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.settings import Settings, budgeted
from onnxshot.stages.make_quantized import make_quantized
from onnxshot.stages.open_samples import open_samples
from onnxshot.stages.prepare_model import prepare_model
from onnxshot.stages.prevent_growth import prevent_growth
from onnxshot.stages.prove import prove_quantized
from onnxshot.targets import target_named
from onnxshot.targets.ort import ORT


@listed
@checked
@budgeted
@one_blas_thread()
@blames_model
def quantize(
    model: ModelSource,
    calib: Calib | None = None,
    *,
    stats: str | Path | None = None,
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    emit: FormatName | Sequence[FormatName] | None = None,
    emit_options: EmitOptions | None = None,
    **options: Unpack[RecipeOptions],
) -> Result:
    """Quantize an ONNX model for a target, and compare the result with the float model.

    Args:
        model: path of an .onnx file, a ModelProto, its bytes, or a result.
        calib: calibration data: a folder of pictures, .npy or .npz files; an .npz file; a test_data_set folder;
            'module:function'; an iterable of dicts from input name to array; or 'random'. Only mode 'static' needs it.
        stats: path of a statistics file that `calibrate` wrote for this model; no sample is run to calibrate then. If
            `calib` is given too, it must include the samples of that file; its other samples are the held-out ones.
        output: where to write. None keeps the result in memory; `Result.save` writes it later.
        preset: preprocessing of pictures: a name, the path of a YAML file, or a Preset.
        transform: called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        recipe: what to do. `options` override its fields.
        settings: how to run it: threads, samples, device.
        emit: format to write, or several, each with the stem of `output`: 'onnx', 'openvino', 'tensorrt'. Default: the
            format of the suffix of `output`, else the target's own. If no target is named, a single format chooses it.
        emit_options: how artifacts other than .onnx are made.
        **options: fields of the recipe by name, such as target='ort', mode='static', exclude=('Softmax',).

    Returns:
        The quantized model, its plan and its report. SQNR in the report is in dB, latency in milliseconds.

    Raises:
        ModelError: the model cannot be read or run, or the written file is not equivalent to the model in memory.
        CalibrationError: samples are missing, or samples or statistics do not fit the model.
        UsageError: options contradict each other or the model, or a file cannot be written.
        TargetError: the target or a requested format cannot be produced here.

    Example:
        >>> result = onnxshot.quantize("model.onnx", "samples/", output="model.int8.onnx")
        >>> result.report.sqnr_db, result.report.speedup
    """
    calib = with_transform(calib, transform)
    started = time.perf_counter()
    made_from, model = origin_of(model), plain_source(model)
    settings = settings or Settings()
    emit = (emit,) if isinstance(emit, str) else emit
    named = place = named_file(output) if output is not None else None
    if recipe is None and "target" not in options:
        options["target"] = artifacts.target_of_artifact(emit, place) or ORT.name
    over = with_mode(options) if recipe is None else options
    recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **over})
    target = target_named(recipe.target)
    formats = artifacts.formats_of(emit, place, target) if place is not None else (artifacts.ONNX,)
    if place is None and emit is not None:
        raise UsageError(f"there is no output to emit {', '.join(emit)} to", "give one; artifacts take its stem")
    if formats != (artifacts.ONNX,) and recipe.quantizes:
        recipe = replace(recipe, portable_ops=True)  # no other runtime reads ONNX Runtime's own operators
    prepared = prepare_model(model, recipe, settings)
    files = settings.files.reading(*made_from, *of_run(prepared.model, calib, preset, stats=stats))
    if place is not None:
        outputs = of_result(place, formats, data=data_suffix(prepared.model))
        files = files.writing(*outputs, *of_options(emit_options))
        place = artifacts.artifact_path(place, artifacts.ONNX)
    files.check()

    with open_samples(prepared, calib, preset, stats) as samples:
        normalized, fixed = prepared.model, prepared.fixed_shapes
        inputs = {t.name: fixed.dims(t.name, normalized.shape(t)) for t in normalized.graph.inputs}
        given = emit_options or EmitOptions(threads=settings.threads)
        options_of_artifacts = artifacts.with_sample_sizes(given, formats, inputs, samples.data)
        made = prevent_growth(make_quantized(prepared, samples))
        judged: Judged | None = None

        # `deliver` writes the .onnx file aside, calls `prove`, then `other_artifacts`, and publishes all at last.
        def prove(draft: Draft) -> tuple[Model, Report]:
            nonlocal made, judged
            made, judged = prove_quantized(made, draft, target_emitted=target.name in formats)
            return made.model, made.report

        def other_artifacts(onnx_file: Path) -> Iterator[AbstractContextManager[tuple[Draft, Artifact]]]:
            stem = named or onnx_file  # not `place`: a link beside `named` may lead elsewhere
            return artifacts.make_artifacts(onnx_file, formats, stem, options_of_artifacts, judged, settings)

        deliver(
            made.model, place, target.name, made.report, prove, other_artifacts, keep=artifacts.ONNX in formats,
            source=source_of(calib, preset, samples.data),
        )  # fmt: skip
    report = made.report
    report.skips = with_measured_reasons(report.skips, recipe)
    report.float_weights = with_measured_reasons(report.float_weights, recipe)
    report.seconds = time.perf_counter() - started
    return Result(made.model, made.plan, made.report, made.gathered.statistics if made.gathered is not None else None)
