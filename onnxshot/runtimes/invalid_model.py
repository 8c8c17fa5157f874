"""Whose fault an error is that nobody foresaw: the model's, where ONNX Runtime or ONNX refuse it too, else ours."""

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
from onnxshot.graph.load import first_line, load_model
from onnxshot.runtimes.ort_runtime import IN_MEMORY, Runner

_NAMES = ("model", "models", "reference", "candidate", "before", "after")
"""Parameters that are a model, or several."""
_SIZES = (1, 32, 512)  # of open dimensions: one of them alone may be too small, or no multiple of what it must be

_Asked = ParamSpec("_Asked")
_Result = TypeVar("_Result")


def blames_model(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Let an unforeseen error of a call on models be a ModelError where others refuse one of them too.

    The models are what _NAMES are called. The words say both: what went wrong here, and what they say. An error that no
    one else shares goes on as it is.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        try:
            return call(*args, **kwargs)
        except OnnxshotError as error:
            path = signature.bind_partial(*args, **kwargs).arguments.get("model")
            if isinstance(path, str | Path) and error.message.startswith(IN_MEMORY):
                error.message = f"{path}{error.message.removeprefix(IN_MEMORY)}"  # a changed copy of it was run
            raise
        except Exception as error:
            given = signature.bind_partial(*args, **kwargs).arguments
            for model in _models(given.get(name) for name in _NAMES):
                if reason := invalid_reason(model):
                    name = "the model" if isinstance(model, ModelProto) else str(model)
                    what = f"{type(error).__name__}: {first_line(error, limit=120)}"
                    said = f"{name} cannot be worked on ({what}); {reason}"
                    raise ModelError(said, "export the model again") from error
            raise

    return called


def _models(values: Iterable[object]) -> Iterator[str | Path | ModelProto]:
    """Those of the values, and of lists of them, that are models."""
    for value in values:
        if isinstance(value, str | Path | ModelProto):
            yield value
        elif isinstance(value, list | tuple):
            yield from _models(value)


def invalid_reason(source: str | Path | ModelProto) -> str:
    """Why ONNX Runtime does not load the model, or ONNX calls it invalid; or "".

    Or why it does not run on zeros, where it does not at any of several sizes that take the place of open ones.
    """
    try:
        proto = load_model(source).skeleton()[0]
        runner = Runner(source.SerializeToString() if isinstance(source, ModelProto) else Path(source), threads=1)
    except OnnxshotError as e:
        return e.message
    except ValueError as e:  # a proto of more than 2 GiB
        return first_line(e)
    said = [_runs(runner, size) for size in _SIZES]
    if all(said):
        return said[0]
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as e:  # of the checker, of shape inference, and of the C++ below
        return f"ONNX calls it invalid: {first_line(e)}"
    return ""


def _runs(runner: Runner, size: int) -> str:
    """Why the model does not run on zeros; empty where it does. size: of open dimensions, but the first ones, of 1."""
    shapes = {
        spec.name: [d if isinstance(d, int) else (size if i else 1) for i, d in enumerate(spec.shape or ())]
        for spec in runner.inputs
    }
    try:
        runner.run({spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in runner.inputs})
    except (OnnxshotError, ValueError, MemoryError) as e:
        return first_line(e)
    return ""
