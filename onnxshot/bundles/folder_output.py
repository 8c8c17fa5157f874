"""Write a folder that a library loads: what goes where, which of it may be replaced, and how all of it is published."""

from __future__ import annotations

import filecmp
import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from onnxshot.bundles.form_names import joined_js_config
from onnxshot.bundles.model_folder import CONFIG, ModelFolder, read_config
from onnxshot.delivery import record
from onnxshot.delivery.output_files import of_model
from onnxshot.errors import ModelError, UsageError
from onnxshot.files.atomic_write import aside, put_folder, write_file
from onnxshot.files.conflicts import Files, Foreign, Read, Write
from onnxshot.files.model_and_data import publish

_OTHER = "choose another folder with [[output|-o]]"


def check_output(folder: ModelFolder, output: Path, models: Mapping[PurePosixPath, str], files: Files) -> None:
    """Check before the work that nothing in the output would be lost.

    Args:
        folder: the folder that is read.
        output: the folder that is written.
        models: path in `output` of every ONNX file that will be made -> suffix of its data file, or "".
        files: other files that the run reads and writes.

    Raises:
        UsageError: the output is no folder, lies in the one that is read, or holds a file that would be replaced and
            that onnxshot did not write.
    """
    real, source = Path(os.path.realpath(output)), Path(os.path.realpath(folder.path))
    if real != source and (real.is_relative_to(source) or source.is_relative_to(real)):
        raise UsageError(f"the output {output} lies in the folder {folder.path}, or holds it", _OTHER)
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(f"the output {output} exists, and is no folder", _OTHER)
    writes = [
        write
        for name, data in models.items()
        for write in (
            *of_model(output / name, f"the model {name}", data=data, named=False),
            Write(record.beside(output / name), "the record"),
        )
    ]
    if real != source:
        writes += [Write(output / name, "a copy", _differs(folder.path / name)) for name in folder.companions]
    reads = (Read(folder.path / name, "a file of the input") for name in (*folder.models, *folder.companions))
    files.reading(*reads).writing(*writes).check()


def publish_folder(folder: ModelFolder, made: Path, home: Path, output: Path) -> None:
    """Copy the companions beside the models that were made, and move all to the output.

    A new output appears in one step. Into one that exists, every file is moved in one step, models last.

    Args:
        folder: the folder that was read.
        made: the folder with the models that were made, and with config.json where that is not a plain copy.
        home: the temporary folder that holds `made`.
        output: the folder to write.

    Raises:
        UsageError: a file cannot be written, or has come into its place meanwhile.
    """
    try:
        if output.is_dir() and output.samefile(folder.path):
            _add_models(made, output)
            return
        for name in folder.companions:
            if not (made / name).exists():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder.path / name, made / name)
        if not output.exists():
            put_folder(made, output, home)
            return
        for name in folder.companions:
            _add_copy(made / name, output / name)
        _add_models(made, output)
    except OSError as e:
        raise UsageError(f"cannot write {output}: {e.strerror or e}", _OTHER) from e


def _add_copy(made: Path, place: Path) -> None:
    if place.is_file() and filecmp.cmp(made, place, shallow=False):
        return
    if place.name == CONFIG and place.is_file():
        joined = joined_js_config(read_config(place), read_config(made))
        if joined is not None:
            write_config(place, joined)
            return
    if os.path.lexists(place):
        raise UsageError(f"{place} is there now, and differs from the file of the input", _OTHER)
    write_file(place, lambda part: shutil.copyfile(made, part))


def _add_models(made: Path, output: Path) -> None:
    """Move models with their data files and records into a folder."""
    for model in sorted(made.rglob("*.onnx")):
        final = output / model.relative_to(made)
        files = [model.name, *(n for n in (f"{model.name}_data", f"{model.name}.data") if model.with_name(n).exists())]
        with aside(final) as part:
            for name in files:
                model.with_name(name).rename(part / name)
            publish(part, final, files)
        beside = record.beside(model)
        if beside.exists():
            write_file(record.beside(final), functools.partial(shutil.copyfile, beside))


def write_config(place: Path, values: Mapping[str, object]) -> None:
    """Write a configuration as JSON, atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_file(place, lambda part: part.write_text(text, encoding="utf-8"))


def _differs(source: Path) -> Foreign:
    """Check a file that a copy would replace: it is equal, or is the configuration of another form of the model."""

    def foreign(path: Path) -> str:
        if filecmp.cmp(source, path, shallow=False):
            return ""
        if path.name == CONFIG:
            try:
                if joined_js_config(read_config(path), read_config(source)) is not None:
                    return ""
            except ModelError as e:
                return e.message
        return f"it differs from {source}"

    return foreign
