"""`bundle`: put the files of a result into one folder with test samples and a manifest, written atomically."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxshot.arguments import checked
from onnxshot.bundles.bundle_manifest import Made, Manifest, check_files, entry_of, files_of, read_manifest
from onnxshot.bundles.samples import MOST_BYTES, Stored
from onnxshot.calibration.batches import batched
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.comparison.proto_edits import parsed
from onnxshot.comparison.random_nodes import inlined, random_sources
from onnxshot.delivery import record
from onnxshot.delivery.artifacts import ONNX, load_artifact
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import of_bundle
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.atomic_write import aside, put_folder
from onnxshot.files.conflicts import Files, Read
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.precision16.bfloat16_emulation import runnable_on_cpu
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages
from onnxshot.report.saving import save_report
from onnxshot.results.compressed import CompressResult
from onnxshot.results.quantized import Result
from onnxshot.rewriting.model_inputs import fixed_shapes_for
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.settings import Settings, budgeted

SAMPLES = 3
BESIDE = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*config.json", "*.model",
    "*label*", "*classes*", "*.names",
)  # fmt: skip
"""Globs of files beside a model that are needed to use its inputs and outputs."""
_KINDS = (".json", ".txt", ".model", ".names", ".yaml", ".yml", "")
_MOST_BESIDE = 32 << 20  # bytes of one of them
_PACKAGES = ("onnxshot", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13")


@checked
@budgeted
def bundle(
    result: Result | CompressResult,
    folder: str | Path,
    calib: Calib | None = None,
    *,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Path:
    """Put all files of a result into one folder, with samples to check it and a manifest of hashes.

    The bundle has the artifacts of the report (or the model in memory, if there are none), the recipe, the report, the
    statistics, up to three held-out samples with the outputs of the float model and of every artifact that runs here,
    and the tokenizer, configuration and label files beside the input. It is written to a temporary folder and renamed.

    Args:
        result: Result of `quantize` or `compress` on a model that was given as a path.
        folder: Folder to write; a bundle there is replaced.
        calib: The samples of the run. Default: random ones.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Settings of the run.

    Returns:
        The folder.

    Raises:
        UsageError: The folder exists and is no bundle, or is a bundle with changed or added files.
        ModelError: The model was given in memory, or cannot be read any more.
        CalibrationError: The samples cannot be read any more.

    Example:
        >>> result = onnxshot.quantize("model.onnx", "samples/", output="model.int8.onnx")
        >>> onnxshot.bundle(result, "bundle/", "samples/")
    """
    calib = with_transform(calib, transform)
    folder, settings = Path(folder), settings or Settings()
    refuse_folder(folder)
    source = Path(result.report.input)
    if result.report.input.startswith("(") and not source.exists():
        what = "the model that the result was made of was given in memory"
        raise ModelError(what, "give its path to the call that made the result")
    loaded = load_model(source)
    written = (Path(name) for made in result.report.outputs for name in _files_of(Path(made.path)))
    reads = (*of_run(loaded, calib, preset), *(Read(path, "a file of the result") for path in written))
    Files((*reads, *of_beside(source)), (of_bundle(folder),)).check()
    with _named(folder), aside(folder) as home:
        made = home / "bundle"
        made.mkdir()
        artifacts = _artifacts(result, made, source.stem)
        values = result.report.to_dict()
        values["outputs"] = [{**output, "path": Path(output["path"]).name} for output in values["outputs"]]
        save_report(values, made / "report.json")
        (made / "recipe.json").write_text(json.dumps(result.report.recipe, indent=1) + "\n", encoding="utf-8")
        if isinstance(result, Result) and result.statistics is not None:
            result.statistics.save(made / "statistics.npz")
        left_out = _take_beside(source, made / "beside")
        if isinstance(preset, str | Path) and Path(preset).is_file():
            shutil.copyfile(preset, made / "preset.yaml")
        with open_calib("random" if calib is None else calib, loaded, preset, settings) as data:
            samples = _samples(source, _held_out(data, loaded, result.report.recipe), artifacts, made, settings.threads)
            manifest = Manifest(
                {name: entry_of(made / name) for name in files_of(made)}, artifacts, samples, data.random, _machine(),
                left_out,
            )  # fmt: skip
        manifest.write(made)
        refuse_folder(folder)  # again: files may have been added meanwhile
        try:
            put_folder(made, folder, home)
        except OSError as e:
            raise UsageError(f"cannot write {folder}: {e.strerror}", "choose another folder") from e
    return folder


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Report a full disk as an error of the bundle, since the system names the copied file only."""
    try:
        yield
    except OSError as e:
        hint = "the files that the run has written before are complete, and stay"
        raise UsageError(f"cannot write the bundle {folder}: {e.strerror or e}", hint) from e


def of_beside(source: Path) -> tuple[Read, ...]:
    """Files beside a model that a bundle includes, such as its tokenizer."""
    return tuple(Read(path, "a file that belongs to the input") for path in _beside(source) if path.is_file())


def refuse_folder(folder: Path) -> None:
    """Raise UsageError if a bundle cannot be written there; only files of a bundle are ever removed."""
    hint = "name a folder that is not there yet"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} exists, and is no folder", hint)
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        manifest = read_manifest(folder)
    except ModelError as e:
        raise UsageError(f"{folder} exists, and is no bundle", hint) from e
    added = [name for name in files_of(folder) if name not in manifest.files]
    if added:
        raise UsageError(f"{folder} is a bundle to which {added[0]!r} was added", hint)
    try:
        check_files(folder, replace(manifest, files={n: e for n, e in manifest.files.items() if (folder / n).exists()}))
    except ModelError as e:
        raise UsageError(f"{folder} is a bundle that was changed: {e.message}", hint) from e


def _artifacts(result: Result | CompressResult, made: Path, stem: str) -> tuple[Made, ...]:
    """Copy the artifacts; write the model if there are none."""
    if not result.report.outputs:
        result.save(made / f"{stem}.onnx")
        return (Made(f"{stem}.onnx", ONNX, str(result.report.recipe.get("target", "ort"))),)
    for artifact in result.report.outputs:
        for file in _files_of(Path(artifact.path)):
            shutil.copyfile(file, made / file.name)
    return tuple(Made(Path(a.path).name, a.format, a.target) for a in result.report.outputs)


def _files_of(path: Path) -> tuple[Path, ...]:
    """The files of an artifact: itself, its weights file and its record, as far as they exist."""
    names = [path.name + suffix for suffix in (".data", "_data")] if path.suffix == ".onnx" else [f"{path.stem}.bin"]
    others = (*map(path.with_name, names), record.beside(path))
    return (path, *(file for file in others if file.exists()))


def _beside(source: Path) -> list[Path]:
    """The files beside a model that belong to it by their names."""
    return sorted({found for glob in BESIDE for found in source.parent.glob(glob) if found.suffix in _KINDS})


def _take_beside(source: Path, made: Path) -> tuple[str, ...]:
    """Copy the files that belong to the model; return the names of those that are too large, with the reason."""
    left_out = []
    for path in _beside(source):
        if not path.is_file():
            continue
        if path.stat().st_size > _MOST_BESIDE:
            left_out.append(f"{path.name}: over {_MOST_BESIDE >> 20} MB")
            continue
        made.mkdir(exist_ok=True)
        shutil.copyfile(path, made / path.name)
    return tuple(left_out)


def _held_out(data: Dataset, model: Model, recipe: Mapping[str, Any]) -> Dataset:
    """The held-out samples, at the fixed input sizes of the result."""
    held_out = data.subset(split(len(data), HOLDOUT)[1])
    quantized = [stage for stage in Stages.from_dict(recipe).stages if isinstance(stage, Recipe)]
    sizes = fixed_shapes_for(model, quantized[-1].batch, quantized[-1].shapes) if quantized else None
    return batched(held_out, sizes.inputs) if sizes else held_out


def _samples(source: Path, data: Dataset, artifacts: tuple[Made, ...], made: Path, threads: int) -> tuple[str, ...]:
    """Write a few samples with the outputs of the float model and of every artifact that runs here; return their names.

    A model that draws random numbers gets no samples, since its outputs cannot be reproduced.
    """
    if random_sources(inlined(parsed(source))):
        return ()
    with runnable_on_cpu([source]) as ((given,), _):
        judge = Runner(given, threads=threads, whole=True)
    runners = dict[str, Loaded]()
    for artifact in artifacts:
        with contextlib.suppress(TargetError):  # without its runtime, only its hash can be checked
            runners[artifact.file] = load_artifact(made / artifact.file, artifact.format, threads=threads)
    names: list[str] = []
    for sample in data:
        if len(names) == SAMPLES:
            break
        outputs = {file: runner.run(sample.feed) for file, runner in runners.items()}
        kept = Stored(sample.feed, judge.run(sample.feed), outputs)
        if kept.bytes <= MOST_BYTES:
            names.append(f"samples/{len(names)}.npz")
            kept.write(made / names[-1])
    return tuple(names)


def _machine() -> dict[str, str]:
    """Versions of the software that computed the expected outputs."""
    found = {"processor": platform.machine(), "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
