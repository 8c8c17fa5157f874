"""Make the package work from a clone, where its subpackage `calibration` lies beside it instead of inside.

An installed package contains `calibration`. In the root of a clone, Python finds the folder `onnxshot/` before any
installed package, so that folder must work by itself, however onnxshot was installed, or if it was not.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from onnxshot import wording

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
"""The folder that must be on sys.path to import this copy of the package."""


def _complete() -> None:
    """Import `onnxshot.calibration` from beside the package; does nothing for an installed package."""
    name, beside = f"{__package__}.calibration", ROOT / "calibration" / "__init__.py"
    if (_PACKAGE / "calibration").is_dir() or not beside.is_file():
        return
    spec = importlib.util.spec_from_file_location(name, beside, submodule_search_locations=[str(beside.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # takes precedence over an editable install of another clone
    spec.loader.exec_module(module)


def command(module: str) -> list[str]:
    """The command that runs a module of this package in a process of its own; run it with `environment`.

    Option -P keeps the working folder off sys.path, where a user may have a `random.py` or an `onnxshot/`.
    """
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """The environment of a worker: that of this process, in which this copy of the package is found first."""
    known = os.environ.get("PYTHONPATH")
    place = str(ROOT.absolute()) if not known else f"{ROOT.absolute()}{os.pathsep}{known}"
    return {**os.environ, "PYTHONPATH": place, **wording.environment()}


_complete()  # at import, so that importing the package is enough
