"""Calling the user's own function for calibration data. Runs code: only what the user named."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from onnxshot.errors import CalibrationError


def call(place: str, function: str) -> object:
    """What the function of a module, or of a .py file, returns."""
    where = f"{place}:{function}"
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except Exception as error:  # the user's own code
        what = f"{place} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        raise CalibrationError(what, "name it as module:function or file.py:function") from error
    made = getattr(module, function, None)
    if not callable(made):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = f"it has: {', '.join(names)}" if names else "it has no functions"
        raise CalibrationError(f"{place} has no function {function!r}", hint)
    try:
        return made()
    except Exception as error:  # the user's own code
        what = f"{where} raised {type(error).__name__}: {' '.join(str(error).split())}"
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
