"""One report of every kind, as plain values, of runs on a small model; made once for all tests."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fixture_data import fixture
from fixture_runs import data_of

import onnxshot
from onnxshot.cli.emit_options import joint_report
from onnxshot.settings import Settings
from onnxshot.wording import worded

NAME = "digits_mobile"
QUICK = Settings(samples=16, use_cache=False, threads=1, bench_seconds=0.01)

HOSTILE = "</script><img src=x onerror='document.title=1'>\"&"


def _quantize() -> dict[str, Any]:
    return onnxshot.quantize(fixture(NAME), **data_of(NAME), settings=QUICK).report.to_dict()


def _tune() -> dict[str, Any]:
    goal = onnxshot.Goal(min_sqnr=40.0)
    return onnxshot.tune(fixture(NAME), **data_of(NAME), goal=goal, settings=QUICK, effort="fast").report.to_dict()


def _prune() -> dict[str, Any]:
    return onnxshot.prune(fixture(NAME), **data_of(NAME), sparsity=0.5, settings=QUICK).report.to_dict()


def _shrink() -> dict[str, Any]:
    return onnxshot.shrink(fixture(NAME), **data_of(NAME), target_flops=0.7, settings=QUICK).report.to_dict()


def _compress() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        given = {**data_of(NAME), "sparsity": 0.5, "output": Path(folder) / "small.onnx"}
        return onnxshot.compress(fixture(NAME), **given, settings=QUICK).report.to_dict()


def _emit() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return onnxshot.emit(fixture(NAME), output=Path(folder) / "net.onnx", settings=QUICK).to_dict()


def _compare() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        onnxshot.quantize(fixture(NAME), **data_of(NAME), settings=QUICK, output=path, effort="fast")
        return onnxshot.compare(fixture(NAME), path, **data_of(NAME), settings=QUICK).to_dict()


def _sensitivity() -> dict[str, Any]:
    return onnxshot.sensitivity(fixture(NAME), **data_of(NAME), gains=True, settings=QUICK).to_dict()


def _targets() -> dict[str, Any]:
    given = {**data_of(NAME), "settings": QUICK, "effort": "fast"}
    names = ("ort", "portable")
    return joint_report({name: onnxshot.quantize(fixture(NAME), target=name, **given).report for name in names})


_MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "quantize": _quantize, "tune": _tune, "prune": _prune, "shrink": _shrink, "compress": _compress, "emit": _emit,
    "compare": _compare, "sensitivity": _sensitivity, "targets": _targets,
}  # fmt: skip
KINDS = tuple(_MADE)


def report_of(kind: str) -> dict[str, Any]:
    """The report of a command, which must not be changed, in the words that texts have now."""
    return _report(kind, worded("[[bits]]"))


@cache
def _report(kind: str, _words: str) -> dict[str, Any]:
    return _MADE[kind]()


def renamed(value: Any) -> Any:
    """The same report, with every name of the model hostile to whoever shows it."""
    if isinstance(value, dict):
        return {k: _hostile(v) if k in _NAMES else renamed(v) for k, v in value.items()}
    return [renamed(v) for v in value] if isinstance(value, list) else value


_NAMES = frozenset({"input", "path", "node", "tensor", "layer", "group", "op", "reason", "notes", "scheme", "source"})


def _hostile(value: Any) -> Any:
    if isinstance(value, list):
        return [_hostile(v) for v in value]
    return HOSTILE + value if isinstance(value, str) else value
