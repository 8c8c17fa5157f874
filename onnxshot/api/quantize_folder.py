"""`quantize_folder`: every ONNX file of a folder, and the files beside them, into a folder that the library loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Unpack

from onnxshot.api.quantize import quantize
from onnxshot.arguments import checked
from onnxshot.bundles import form_names
from onnxshot.bundles.folder_output import check_output, publish_folder, write_config
from onnxshot.bundles.model_folder import CONFIG, GENAI, ModelFolder, read_config, read_folder
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, repeatable, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.artifacts import ONNX
from onnxshot.delivery.input_files import of_calib, of_preset
from onnxshot.delivery.output_files import data_suffix
from onnxshot.errors import OnnxshotError, in_place
from onnxshot.files.atomic_write import aside
from onnxshot.files.conflicts import Files
from onnxshot.graph.load import load_model
from onnxshot.recipes.recipe import Recipe, with_mode
from onnxshot.recipes.recipe_options import RecipeOptions, listed
from onnxshot.report.report import Report
from onnxshot.results.folder import FolderResult
from onnxshot.settings import Settings, budgeted

_SHOWN = 5  # names in a note


@listed
@checked
@budgeted
def quantize_folder(
    folder: str | Path,
    calib: Calib | None = None,
    *,
    output: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Unpack[RecipeOptions],
) -> FolderResult:
    """Quantize all ONNX files of a folder as optimum, transformers.js or onnxruntime-genai load it, into such a folder.

    The result has the files that the library needs: configuration, tokenizer, generation settings. A folder of optimum
    or transformers.js gets names such as onnx/model_q4.onnx, and a config.json that makes transformers.js load them by
    default. A folder of onnxruntime-genai keeps the names that its genai_config.json has. A file that is another form
    of a file beside it, such as model_fp16.onnx beside model.onnx, is not read.

    Args:
        folder: the folder.
        calib: as for `quantize`; every file is calibrated on it.
        output: folder to write. If it exists, files are added to it, and only models that onnxshot has written are
            replaced. Default: the name of the input and of the form, such as smollm-q4, beside the input.
        preset: as for `quantize`.
        transform: called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        recipe: what to do with each file. `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe by name, such as mode='weights'.

    Returns:
        The folder and the report of every file.

    Raises:
        ModelError: the folder is not that of a model, or a file in it cannot be read or run.
        CalibrationError: as for `quantize`.
        UsageError: options contradict each other, or a file would be replaced.
        TargetError: as for `quantize`.

    Example:
        >>> onnxshot.quantize_folder("whisper/", output="whisper-q8/", mode="weights").reports
    """
    calib = repeatable(with_transform(calib, transform))  # every file reads it
    settings = settings or Settings()
    over = with_mode(options) if recipe is None else options
    recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **over})
    given = read_folder(Path(folder))
    loaded = {name: load_model(given.path / name) for name in given.models}
    half = any(map(form_names.is_half, loaded.values()))
    half_past = any(map(form_names.has_half_past, loaded.values()))
    form = form_names.form_of(recipe, half=half)
    places = {name: name if given.kind == GENAI else form_names.form_path(name, form) for name in given.models}
    place = Path(output) if output is not None else _default_output(given, form)
    files = settings.files.reading(*of_calib(calib), *of_preset(preset))
    check_output(given, place, {places[name]: data_suffix(model) for name, model in loaded.items()}, files)
    loaded.clear()
    added = place.is_dir()
    with aside(place / "models" if added else place) as home:
        made = home if added else home / place.name
        reports: dict[str, Report] = {}
        for name in given.models:
            reports[str(name)] = _quantized(given, name, made / places[name], calib, preset, recipe, settings)
        if given.kind != GENAI and (given.path / CONFIG).is_file() and given.models[0].parent == PurePosixPath("onnx"):
            data = {places[name].name: form_names.data_files(made / places[name]) for name in given.models}
            config = form_names.js_config(read_config(given.path / CONFIG), form, data, half_past=half_past)
            write_config(made / CONFIG, config)
        publish_folder(given, made, home, place)
    notes = _notes(given, place, form)
    return FolderResult(
        given.path, place, reports, tuple(map(str, given.companions)), tuple(map(str, given.left_out)), notes
    )


def _quantized(
    folder: ModelFolder,
    name: PurePosixPath,
    output: Path,
    calib: Calib,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    recipe: Recipe,
    settings: Settings,
) -> Report:
    """Quantize one file; its report has the final paths. Errors name the file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = quantize(
            folder.path / name, calib, output=output, preset=preset, recipe=recipe,
            settings=replace(settings, files=Files()), emit=(ONNX,),
        ).report  # fmt: skip
    except OnnxshotError as e:
        if str(name) not in e.message:
            e.message = f"{name}: {e.message}"
        raise
    report.outputs = [replace(artifact, path=in_place(artifact.path)) for artifact in report.outputs]
    report.notes = [in_place(note) for note in report.notes]
    return report


def _default_output(folder: ModelFolder, form: str) -> Path:
    """The folder beside the input, with the form in its name."""
    path = folder.path.resolve() if folder.path.name in ("", "..") else folder.path
    return path.with_name(f"{path.name}-{form}")


def _notes(folder: ModelFolder, place: Path, form: str) -> tuple[str, ...]:
    """What was not done."""
    notes = []
    if place.samefile(folder.path) and folder.kind != GENAI:
        notes.append(f"{CONFIG} is unchanged, as its folder was read; transformers.js needs the option dtype: '{form}'")
    elif folder.left_out:
        few = ", ".join(map(str, folder.left_out[:_SHOWN]))
        more = f" and {len(folder.left_out) - _SHOWN} more" if len(folder.left_out) > _SHOWN else ""
        notes.append(f"not copied, as they hold weights of another framework or are over 256 MB: {few}{more}")
    return tuple(notes)
