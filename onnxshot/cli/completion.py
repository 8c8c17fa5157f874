"""Values that the shell completes. They are looked up where the program defines them, when the shell asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

Completer = Callable[[str], list[str]]


def one_of(source: str | Iterable[str]) -> Completer:
    """Return what completes the last of several names that commas separate.

    Args:
        source: the names, or "module:NAME", which holds them or returns them.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in _names(source) if name.startswith(last)]

    return complete


def _names(source: str | Iterable[str]) -> Iterable[str]:
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    found = getattr(import_module(module), name)
    names: Iterable[str] = found() if callable(found) else found
    return names


ACTIVATION_TYPES = "onnxshot.recipes.vocabulary:ACTIVATION_TYPES"
CUT_SCOPES = ("all", "mlp", "heads")
DEVICES = "onnxshot.settings:DEVICES"
EFFORTS = "onnxshot.recipes.vocabulary:EFFORTS"
FORMATS = ("onnx", "openvino", "tensorrt")
IMPORTANCES = "onnxshot.recipes.stages:IMPORTANCES"
METHODS = "onnxshot.calibration.range_methods:METHODS"
MODES = "onnxshot.recipes.vocabulary:MODES"
PATTERNS = ("unstructured", "2:4", "block:4x1", "channels")
PRECISIONS = "onnxshot.recipes.vocabulary:PRECISIONS"
PRESETS = "onnxshot.calibration.preset:preset_names"
QDQ_FORMATS = "onnxshot.recipes.vocabulary:FORMATS"
SCOPES = "onnxshot.recipes.stages:SCOPES"
TARGETS = "onnxshot.targets:TARGETS"
WEIGHT_TYPES = "onnxshot.recipes.vocabulary:WEIGHT_TYPES"
