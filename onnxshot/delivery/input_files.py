"""The files that stand behind what a run is given: a model and its weights, samples, presets, recipes, code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxshot.calibration.preset import Preset
from onnxshot.calibration.user_functions import named
from onnxshot.errors import OnnxshotError
from onnxshot.files.conflicts import SAMPLES, Read
from onnxshot.files.urls import is_remote
from onnxshot.graph import Model
from onnxshot.graph.load import external_files
from onnxshot.recipes.files import files_of

INPUT = "the input"


def of_model(model: Model | None, role: str = INPUT) -> tuple[Read, ...]:
    """The file of a model that was loaded, and those of its external data."""
    if model is None or model.path is None:
        return ()
    return Read(model.path, role), *(Read(path, f"external data of {role}") for path in model.data_files)


def of_model_file(path: Any, role: str = INPUT) -> tuple[Read, ...]:
    """The same of a file that is still to be loaded, without its external data where it does not parse."""
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
    preset: str | Preset | None = None,
    *,
    stats: str | Path | None = None,
    evaluate: Any = None,
) -> tuple[Read, ...]:
    """All that a run reads of what it was given; model: as it was loaded, where it was."""
    return (
        *of_model(model), *of_calib(calib), *of_preset(preset), *of_file(stats, "the statistics"),
        *of_function(evaluate, "the evaluation"),
    )  # fmt: skip


def of_calib(calib: Any) -> tuple[Read, ...]:
    """The files of samples, or of the function that gives them; of arrays, those that they are mapped from."""
    if isinstance(calib, str | Path):
        if not str(calib) or is_remote(str(calib)):
            return ()
        if _exists(Path(calib)):
            return (Read(Path(calib), "one of the samples", SAMPLES),)
        return of_function(str(calib), "the reader of samples")
    feeds = calib if type(calib) in (list, tuple) else (calib,)  # the code of other classes is not run here
    arrays = (array for feed in feeds for array in (feed.values() if type(feed) is dict else (feed,)))
    mapped = {str(array.filename) for array in arrays if isinstance(array, np.memmap) and array.filename}
    return tuple(Read(Path(name), "one of the samples") for name in sorted(mapped))


def of_preset(preset: str | Preset | None) -> tuple[Read, ...]:
    """The file of a preset; a name stands for none."""
    name = preset.name if isinstance(preset, Preset) else preset or ""
    named_file = name.lower().endswith((".yaml", ".yml")) and _is_file(Path(name))
    return (Read(Path(name), "the preset"),) if named_file else ()


def of_file(path: str | Path | None, role: str) -> tuple[Read, ...]:
    """A file that is read, where there is one."""
    return () if path is None or is_remote(str(path)) else (Read(Path(path), role),)


def of_recipe(
    path: str | Path | None, arguments: Mapping[str, str] | None = None, what: str = "recipe"
) -> tuple[Read, ...]:
    """The file of a recipe or a manifest, and those that it extends. Raises UsageError as reading it does."""
    return () if path is None else tuple(Read(one, f"the {what}") for one in files_of(path, arguments, what))


def of_function(given: Any, role: str) -> tuple[Read, ...]:
    """The file of a function: 'file.py:function', 'module:function', or the function itself. Nothing is imported."""
    if given is None:
        return ()
    if not isinstance(given, str):
        try:
            source = inspect.getsourcefile(given if hasattr(given, "__code__") else type(given))
        except TypeError:  # of the interpreter itself
            source = None
        return (Read(Path(source), role),) if source else ()
    found = named(given)
    place = _module_file(found[0]) if found is not None else None
    return (Read(place, role),) if place is not None else ()


def _module_file(place: str) -> Path | None:
    """Where the code of a module lies that the user may have written; the folder we are in comes first."""
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
