"""Folders of models as libraries load them: which ONNX files they hold, what belongs to those, and what is another's.

Two kinds are read. Optimum, transformers.js and sentence-transformers load a folder with a config.json (diffusers: a
model_index.json), whose ONNX files lie in it or in its folder onnx/. onnxruntime-genai loads a folder with a
genai_config.json, which names the ONNX files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnxshot.delivery.record import beside
from onnxshot.errors import ModelError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import check_regular, read_regular
from onnxshot.graph.load import external_files

GENAI_CONFIG = "genai_config.json"
CONFIG = "config.json"
GENAI, TRANSFORMERS = "onnxruntime-genai", "transformers"
"""Kinds of folders, by the libraries that load them."""

_CONFIGS = (CONFIG, "model_index.json")
_MOST_FILES = 4096  # of a folder, at any depth; a folder with more is not that of one model
_MOST_CONFIG = 16 << 20  # bytes of a configuration
_MOST_DEPTH = 16  # of a configuration
_MOST_COPIED = 256 << 20  # bytes of a file that is copied; the largest tokenizers take some 40 MB
_OTHER_WEIGHTS = re.compile(
    r".*\.(safetensors|gguf|pt|pth|ckpt|h5|msgpack|tflite|ot|ort|mlmodel|onnx|onnx_data(_\d+)?|onnx\.data)"
    r"|(pytorch_model|openvino_.*model|flax_model|tf_model|model).*\.(bin|xml|index\.json)",
    re.IGNORECASE,
)
"""Names of files that hold weights, or belong to files of weights; they are not copied."""
VARIANT = re.compile(
    r"(?P<base>.+?)_(fp16|bf16|fp32|int8|uint8|quantized|bnb4|O[1-4]|q[1248](f16)?|q?u?int8(_.+)?)", re.IGNORECASE
)
"""Names of files that were made from another file: those of transformers.js, optimum and sentence-transformers."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder of one model. Paths of its files are relative to it.

    Attributes:
        path: the folder.
        kind: `GENAI` or `TRANSFORMERS`.
        models: the ONNX files that other forms are made from. A file that is another form of one of them is not listed.
        companions: files that the model needs to be loaded and used, such as its configuration and tokenizer.
        left_out: files that are neither, such as the weights of other frameworks.
    """

    path: Path
    kind: str
    models: tuple[PurePosixPath, ...]
    companions: tuple[PurePosixPath, ...]
    left_out: tuple[PurePosixPath, ...]


def read_folder(path: Path) -> ModelFolder:
    """Read what a folder of a model holds.

    Raises:
        ModelError: it is no folder of a model; its configuration does not parse or names files that are not there; or a
            file in it is a link that leads out of it.
    """
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder", "name the folder of a model, or an .onnx file")
    there = tuple(_files(path))
    onnx = [name for name in there if name.suffix.lower() == ".onnx"]
    if not onnx:
        hint = "export the model first: optimum-cli export onnx --model NAME FOLDER"
        raise ModelError(f"{path} holds no .onnx file", hint)
    if PurePosixPath(GENAI_CONFIG) in there:
        kind, models = GENAI, _named_models(path, there)
    else:
        kind, models = TRANSFORMERS, _sources(onnx)
        if configs := [name for name in _CONFIGS if PurePosixPath(name) in there]:
            read_config(path / configs[0])
        elif len(models) > 1:
            few = ", ".join(map(str, models[:3]))
            what = f"{path} holds {len(models)} models, such as {few}, and neither {CONFIG} nor {GENAI_CONFIG}"
            raise ModelError(what, "name one of the .onnx files, or add the configuration")
    own = {*onnx, *(file for name in onnx for file in _belonging(path, name, strict=name in models))}
    others = [name for name in there if name not in own]
    copied = tuple(name for name in others if not _OTHER_WEIGHTS.fullmatch(name.name) and _is_small(path / name))
    return ModelFolder(path, kind, tuple(models), copied, tuple(name for name in there if name not in (*copied, *own)))


def read_config(path: Path) -> dict[str, Any]:
    """The values of a configuration. Raises ModelError where it is no JSON object."""
    try:
        values = json.loads(read_regular(path, "the configuration", ModelError, _MOST_CONFIG))
    except (ValueError, RecursionError, OSError) as e:
        raise ModelError(f"{path} cannot be read as JSON: {e}", "copy or export the folder again") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {shown(values)}, not keys and values", "copy or export the folder again")
    return values


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """All files in a folder, sorted. Hidden files and folders are left out: they belong to git or to caches.

    Raises ModelError for a link that leads out of the folder, and for too many files.
    """
    count, inside = 0, _allowed(folder)
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(at) / name).is_symlink():
                raise ModelError(f"{Path(at) / name} is a link to a folder", "copy that folder to its place")
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(at) / name
            if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(root) for root in inside):
                raise ModelError(f"{path} is a link that leads out of {folder}", "copy the file to its place")
            check_regular(path, "the file", ModelError)
            count += 1
            if count > _MOST_FILES:
                raise ModelError(f"{folder} holds more than {_MOST_FILES} files", "name the folder of one model")
            yield PurePosixPath(path.relative_to(folder).as_posix())


def _allowed(folder: Path) -> tuple[Path, ...]:
    """Where links in the folder may lead: into it, and in the cache of the Hugging Face Hub to the files of its model.

    There, folder is models--OWNER--NAME/snapshots/COMMIT, and its files are links into models--OWNER--NAME/blobs.
    """
    real = Path(os.path.realpath(folder))
    cached = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")
    return (real, real.parent.parent / "blobs") if cached else (real,)


def _sources(names: list[PurePosixPath]) -> list[PurePosixPath]:
    """The ONNX files that are not another form of a file beside them; of several forms alone, that in float16."""
    there, kept = {name.with_suffix("") for name in names}, list[PurePosixPath]()
    forms: dict[PurePosixPath, list[PurePosixPath]] = {}
    for name in names:
        match = VARIANT.fullmatch(name.stem)
        base = name.with_name(match["base"]) if match else name.with_suffix("")
        if base in there:
            kept += [name] if base == name.with_suffix("") else []
        else:
            forms.setdefault(base, []).append(name)
    for found in forms.values():
        floats = [name for name in found if name.stem.lower().endswith(("_fp16", "_fp32"))]
        kept += floats[-1:] or found[:1]
    return sorted(kept)


def _named_models(folder: Path, there: tuple[PurePosixPath, ...]) -> list[PurePosixPath]:
    """The ONNX files that a genai_config.json names. Raises ModelError where it names none, or one that is missing."""
    config = folder / GENAI_CONFIG
    model = read_config(config).get("model")
    found = list(dict.fromkeys(_file_names(model)))
    if not found:
        raise ModelError(f"{config} names no .onnx file", "it should name one at model.decoder.filename")
    names = [PurePosixPath(name) for name in found]
    for name in names:
        if name.is_absolute() or ".." in name.parts or "\\" in str(name):
            raise ModelError(f"{config} names the file {shown(str(name))}, which is outside {folder}", "copy it there")
        if name not in there:
            raise ModelError(f"{config} names the file {shown(str(name))}, which is not in {folder}", "copy it there")
    return sorted(names)


def _file_names(values: Any, depth: int = 0) -> Iterator[str]:
    """All values of keys `filename` that end in .onnx, such as those of decoder, encoder, vision and pipelines."""
    if depth > _MOST_DEPTH:
        return
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key == "filename" and isinstance(value, str) and value.lower().endswith(".onnx"):
                yield value
            yield from _file_names(value, depth + 1)
    elif isinstance(values, list):
        for value in values:
            yield from _file_names(value, depth + 1)


def _belonging(folder: Path, name: PurePosixPath, *, strict: bool) -> Iterator[PurePosixPath]:
    """The external data and the record of an ONNX file. `strict`: whether a file that does not parse is an error."""
    yield PurePosixPath(beside(Path(name)).as_posix())
    with contextlib.nullcontext() if strict else contextlib.suppress(ModelError):
        yield from (PurePosixPath(file.relative_to(folder).as_posix()) for file in external_files(folder / name))


def _is_small(path: Path) -> bool:
    return path.stat().st_size <= _MOST_COPIED
