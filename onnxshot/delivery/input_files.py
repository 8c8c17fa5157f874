"""List the files that a run reads: the model and its external data, samples, presets, recipes, functions.

Nothing is read or written here. The lists are compared with those of `output_files` before the work.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxshot.calibration.given import Repeatable, Transformed
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.tokenizer import FILE
from onnxshot.calibration.user_functions import named
from onnxshot.errors import OnnxshotError
from onnxshot.files.conflicts import SAMPLES, Read
from onnxshot.files.urls import is_remote
from onnxshot.graph import Model
from onnxshot.graph.load import external_files
from onnxshot.recipes.files import files_of

INPUT = "the input"


def of_model(model: Model | None, role: str = INPUT) -> tuple[Read, ...]:
    """The file of a loaded model and its external data; empty for a model that has no file."""
    if model is None or model.path is None:
        return ()
    return Read(model.path, role), *(Read(path, f"external data of {role}") for path in model.data_files)


def of_model_file(path: Any, role: str = INPUT) -> tuple[Read, ...]:
    """The file of a model that is not loaded yet, and its external data where the file can be parsed."""
    if not isinstance(path, str | Path) or not _is_file(Path(path)):
        return ()
    try:
        data = external_files(Path(path)) if Path(path).suffix.lower() == ".onnx" else []
    except OnnxshotError:
        data = []
    return Read(Path(path), role), *(Read(one, f"external data of {role}") for one in data)


def of_run(
    model: Model | None,
    calib: Any = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    *,
    stats: str | Path | None = None,
    evaluate: Any = None,
) -> tuple[Read, ...]:
    """All files that a run reads, by the arguments it was given; `model`: the loaded model, or None."""
    return (
        *of_model(model), *of_calib(calib), *of_preset(preset), *of_file(stats, "the statistics"),
        *of_function(evaluate, "the evaluation"),
    )  # fmt: skip


def of_calib(calib: Any) -> tuple[Read, ...]:
    """The files of samples: a path, the code of a function, or the files that arrays are memory-mapped from."""
    if isinstance(calib, Repeatable):
        return of_calib(calib.data)
    if isinstance(calib, Transformed):
        return (*of_calib(calib.data), *of_function(calib.by, "the transform"))
    if isinstance(calib, str | Path):
        if not str(calib) or is_remote(str(calib)):
            return ()
        if _exists(Path(calib)):
            return (Read(Path(calib), "one of the samples", SAMPLES),)
        return of_function(str(calib), "the reader of samples")
    if type(calib) in (list, tuple) and (listed := [one for one in calib if isinstance(one, str | Path)]):
        return tuple(Read(Path(one), "one of the samples") for one in listed if _exists(Path(one)))
    feeds = calib if type(calib) in (list, tuple) else (calib,)  # iterating other classes would run their code
    arrays = (array for feed in feeds for array in (feed.values() if type(feed) is dict else (feed,)))
    mapped = {str(array.filename) for array in arrays if isinstance(array, np.memmap) and array.filename}
    return tuple(Read(Path(name), "one of the samples") for name in sorted(mapped))


def of_preset(preset: str | Path | Preset | SoundPreset | TextPreset | None) -> tuple[Read, ...]:
    """The file of a preset, and that of its tokenizer; empty for a preset that ships with onnxshot."""
    if isinstance(preset, TextPreset):
        return of_preset(preset.name) + of_tokenizer(preset.tokenizer)
    name = preset.name if isinstance(preset, Preset | SoundPreset) else str(preset or "")
    named_file = name.lower().endswith((".yaml", ".yml")) and _is_file(Path(name))
    return (Read(Path(name), "the preset"),) if named_file else ()


def of_tokenizer(path: str | Path | None) -> tuple[Read, ...]:
    """The file of a tokenizer, given as a file or as its folder."""
    if path is None or is_remote(str(path)):
        return ()
    return of_file(Path(path) / FILE if Path(path).is_dir() else path, "the tokenizer")


def of_file(path: str | Path | None, role: str) -> tuple[Read, ...]:
    """A single file of this role; empty for None and for URLs."""
    return () if path is None or is_remote(str(path)) else (Read(Path(path), role),)


def of_recipe(
    path: str | Path | None, arguments: Mapping[str, str] | None = None, what: str = "recipe"
) -> tuple[Read, ...]:
    """The file of a recipe or manifest, and the files it extends. Raises as `recipes.files.load_stages`."""
    return () if path is None else tuple(Read(one, f"the {what}") for one in files_of(path, arguments, what))


def of_function(given: Any, role: str) -> tuple[Read, ...]:
    """The file of a function, given as 'file.py:function', 'module:function' or a callable. Nothing is imported."""
    if given is None:
        return ()
    if not isinstance(given, str):
        try:
            source = inspect.getsourcefile(given if hasattr(given, "__code__") else type(given))
        except TypeError:  # a built-in
            source = None
        return (Read(Path(source), role),) if source else ()
    found = named(given)
    place = _module_file(found[0]) if found is not None else None
    return (Read(place, role),) if place is not None else ()


def _module_file(place: str) -> Path | None:
    """The file of a module; the working folder is searched first."""
    if place.endswith(".py"):
        return Path(place)
    if (known := sys.modules.get(place)) is not None and known.__file__:
        return Path(known.__file__)
    return next((path for path in _module_places(place) if _is_file(path)), None)


def _module_places(place: str) -> Iterator[Path]:
    for folder in ("", *sys.path):
        at = Path(folder, *place.split("."))
        yield from (at.with_name(f"{at.name}.py"), at / "__init__.py")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
