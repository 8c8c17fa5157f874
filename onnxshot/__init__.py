"""onnxshot: compress exported ONNX models in one shot, without training code, with proof.

The names in `__all__` are public. Each is imported when it is first used, so that `import onnxshot` itself is fast.
"""

from __future__ import annotations

from onnxshot import early_signals as _early_signals  # noqa: F401  # isort: skip  # first: other imports take time

from importlib import import_module
from typing import TYPE_CHECKING

from onnxshot import source_tree as _source_tree  # noqa: F401  # first: it makes a clone's calibration/ importable

if TYPE_CHECKING:
    from onnxshot import batch, errors, recipes, testing
    from onnxshot.api.bench import bench
    from onnxshot.api.bundle import bundle
    from onnxshot.api.calibrate import calibrate
    from onnxshot.api.compare import compare
    from onnxshot.api.compress import compress
    from onnxshot.api.diff import diff
    from onnxshot.api.doctor import doctor
    from onnxshot.api.emit import emit
    from onnxshot.api.inspect import inspect
    from onnxshot.api.prune import prune
    from onnxshot.api.quantize import quantize
    from onnxshot.api.quantize_folder import quantize_folder
    from onnxshot.api.replay import replay
    from onnxshot.api.sensitivity import sensitivity
    from onnxshot.api.shrink import shrink
    from onnxshot.api.tune import tune
    from onnxshot.api.verify import verify
    from onnxshot.calibration.preset import Preset
    from onnxshot.calibration.reader_hooks import register_reader
    from onnxshot.calibration.sound_preset import SoundPreset
    from onnxshot.calibration.text_preset import TextPreset
    from onnxshot.recipes.recipe import Recipe
    from onnxshot.recipes.recipe_options import RecipeOptions
    from onnxshot.report.report import Report
    from onnxshot.results.compressed import CompressResult
    from onnxshot.results.folder import FolderResult
    from onnxshot.results.pruned import PruneReport, PruneResult
    from onnxshot.results.quantized import Result
    from onnxshot.results.shrunk import ShrinkResult
    from onnxshot.runtimes.base import EmitOptions
    from onnxshot.search.goal import Goal
    from onnxshot.settings import Settings

__version__ = "0.1.0"

_PACKAGES = ("batch", "errors", "recipes", "testing")
_HOMES = {
    "CompressResult": "onnxshot.results.compressed",
    "EmitOptions": "onnxshot.runtimes.base",
    "FolderResult": "onnxshot.results.folder",
    "Goal": "onnxshot.search.goal",
    "Preset": "onnxshot.calibration.preset",
    "PruneReport": "onnxshot.results.pruned",
    "PruneResult": "onnxshot.results.pruned",
    "Recipe": "onnxshot.recipes.recipe",
    "RecipeOptions": "onnxshot.recipes.recipe_options",
    "Report": "onnxshot.report.report",
    "Result": "onnxshot.results.quantized",
    "Settings": "onnxshot.settings",
    "ShrinkResult": "onnxshot.results.shrunk",
    "SoundPreset": "onnxshot.calibration.sound_preset",
    "TextPreset": "onnxshot.calibration.text_preset",
    "bench": "onnxshot.api.bench",
    "bundle": "onnxshot.api.bundle",
    "calibrate": "onnxshot.api.calibrate",
    "compare": "onnxshot.api.compare",
    "compress": "onnxshot.api.compress",
    "diff": "onnxshot.api.diff",
    "doctor": "onnxshot.api.doctor",
    "emit": "onnxshot.api.emit",
    "inspect": "onnxshot.api.inspect",
    "prune": "onnxshot.api.prune",
    "quantize": "onnxshot.api.quantize",
    "quantize_folder": "onnxshot.api.quantize_folder",
    "register_reader": "onnxshot.calibration.reader_hooks",
    "replay": "onnxshot.api.replay",
    "sensitivity": "onnxshot.api.sensitivity",
    "shrink": "onnxshot.api.shrink",
    "tune": "onnxshot.api.tune",
    "verify": "onnxshot.api.verify",
}
"""The module of each public name."""

__all__ = [
    "CompressResult",
    "EmitOptions",
    "FolderResult",
    "Goal",
    "Preset",
    "PruneReport",
    "PruneResult",
    "Recipe",
    "RecipeOptions",
    "Report",
    "Result",
    "Settings",
    "ShrinkResult",
    "SoundPreset",
    "TextPreset",
    "batch",
    "bench",
    "bundle",
    "calibrate",
    "compare",
    "compress",
    "diff",
    "doctor",
    "emit",
    "errors",
    "inspect",
    "prune",
    "quantize",
    "quantize_folder",
    "recipes",
    "register_reader",
    "replay",
    "sensitivity",
    "shrink",
    "testing",
    "tune",
    "verify",
]


if not TYPE_CHECKING:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name in _PACKAGES:
            return import_module(f"onnxshot.{name}")
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
