"""The package as it stands in a clone, where its part `calibration` lies beside it and not inside.

An installed package holds `calibration` itself. In a clone's root Python finds the folder `onnxshot/` before any
installed package, so that folder must be whole by itself: however onnxshot was installed, or not at all.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
"""The folder that Python must search to find this very package."""


def _complete() -> None:
    """Make `onnxshot.calibration` importable where it lies beside the package; an installed package needs nothing."""
    name, beside = f"{__package__}.calibration", ROOT / "calibration" / "__init__.py"
    if (_PACKAGE / "calibration").is_dir() or not beside.is_file():
        return
    spec = importlib.util.spec_from_file_location(name, beside, submodule_search_locations=[str(beside.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # in front of what an editable install of another clone would find
    spec.loader.exec_module(module)


def command(module: str) -> list[str]:
    """The command that runs a module of this package in a process of its own; `environment` goes with it.

    -P: neither the working folder, where a user's `random.py` or `onnxshot/` may lie, nor a script's is searched.
    """
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """The environment of this process, in which Python finds this very package first."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": str(ROOT.absolute()) if not known else f"{ROOT.absolute()}{os.pathsep}{known}"}


_complete()  # here, so that the first import of the package is enough
