"""Attribute unexpected errors: to the model, if ONNX Runtime or ONNX refuse it too, else to onnxshot."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import onnx
from onnx import ModelProto

from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import first_line, load_model
from onnxshot.runtimes.ort_runtime import IN_MEMORY, Runner

_NAMES = ("model", "models", "reference", "candidate", "before", "after")
"""Parameters that hold a model, or several."""
_SIZES = (1, 32, 512)  # of free dimensions: a single one may be too small, or not a multiple the model needs

_Asked = ParamSpec("_Asked")
_Result = TypeVar("_Result")


def blames_model(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Decorator that turns an unexpected error of a verb into a ModelError if the model is invalid.

    The models are the arguments named in _NAMES. A model is invalid if `invalid_reason` says so. The message contains
    both the unexpected error and that reason. Errors that a valid model causes are raised unchanged.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        try:
            return call(*args, **kwargs)
        except OnnxshotError as error:
            path = signature.bind_partial(*args, **kwargs).arguments.get("model")
            if isinstance(path, str | Path) and error.message.startswith(IN_MEMORY):
                error.message = f"{path}{error.message.removeprefix(IN_MEMORY)}"  # an edited copy of it was run
            raise
        except Exception as error:
            given = signature.bind_partial(*args, **kwargs).arguments
            for model in _models(given.get(name) for name in _NAMES):
                if reason := invalid_reason(model):
                    name = "the model" if isinstance(model, ModelProto) else str(model)
                    what = f"{type(error).__name__}: {first_line(error, limit=120)}"
                    said = f"{name} cannot be processed ({what}); {reason}"
                    raise ModelError(said, "export the model again") from error
            raise

    return called


def _models(values: Iterable[object]) -> Iterator[str | Path | ModelProto]:
    """The values, and items of lists of values, that are models."""
    for value in values:
        if isinstance(value, str | Path | ModelProto):
            yield value
        elif isinstance(value, list | tuple):
            yield from _models(value)


def invalid_reason(source: str | Path | ModelProto) -> str:
    """Why a model is invalid; empty if it seems valid.

    It is invalid if ONNX Runtime does not load it, if ONNX's checker rejects it, or if ONNX Runtime runs it on zeros at
    none of several sizes of its free dimensions.
    """
    try:
        proto = load_model(source).skeleton()[0]
        runner = Runner(LeanModel.of(source) if isinstance(source, ModelProto) else Path(source), threads=1)
    except OnnxshotError as e:
        return e.message
    said = [_runs(runner, size) for size in _SIZES]
    if all(said):
        return said[0]
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as e:  # from the checker, shape inference, or their C++ code
        return f"ONNX calls it invalid: {first_line(e)}"
    return ""


def _runs(runner: Runner, size: int) -> str:
    """Why the model does not run on zeros; empty if it does.

    `size`: of free dimensions, except the first of each input, which is 1.
    """
    shapes = {
        spec.name: [d if isinstance(d, int) else (size if i else 1) for i, d in enumerate(spec.shape or ())]
        for spec in runner.inputs
    }
    try:
        runner.run({spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in runner.inputs})
    except (OnnxshotError, ValueError, MemoryError) as e:
        return first_line(e)
    return ""
