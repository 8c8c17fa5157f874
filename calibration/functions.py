"""Finding and calling the user's own functions, for data and for scores. Runs code: only what the user named."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxshot.errors import CalibrationError

_SPELLED = re.compile(r"(?P<place>.+):(?P<function>[A-Za-z_]\w*)")


def named(text: str) -> tuple[str, str] | None:
    """(module or .py file, function) of 'module:function' or 'file.py:function'; None for any other text."""
    match = _SPELLED.fullmatch(text)
    return (match["place"], match["function"]) if match else None


def load(place: str, function: str) -> Callable[..., Any]:
    """The function of a module, or of a .py file. Raises CalibrationError where it is not there."""
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except Exception as error:  # the user's own code
        what = f"{place} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        raise CalibrationError(what, "name it as module:function or file.py:function") from error
    made: object = getattr(module, function, None)
    if not callable(made):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = f"it has: {', '.join(names)}" if names else "it has no functions"
        raise CalibrationError(f"{place} has no function {function!r}", hint)
    return made


def call(place: str, function: str) -> object:
    """What the function of a module, or of a .py file, returns."""
    made = load(place, function)
    try:
        return made()
    except Exception as error:  # the user's own code
        what = f"{place}:{function} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise CalibrationError(what, "it is called without arguments and returns or yields dicts") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    spec = importlib.util.spec_from_file_location(f"onnxshot_calib_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does: a console script would not see the user's module
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
