"""What the verbs take as a model: a path, a ModelProto, its bytes, or the result of another verb."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxshot.delivery.write_results import Made
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write

ModelSource = str | Path | ModelProto | bytes | Made
"""A path, a ModelProto, its bytes, or a result of `quantize`, `tune`, `prune`, `shrink` or `compress`."""


def plain_source(model: ModelSource) -> str | Path | ModelProto:
    """The path or ModelProto that a model is read from.

    Raises:
        ModelError: the bytes are no model, or a result is over 2 GiB, more than a ModelProto may have.
    """
    if isinstance(model, bytes):
        try:
            return ModelProto.FromString(model)
        except DecodeError as e:
            raise ModelError("the given bytes are no ONNX model", "give those of an .onnx file") from e
    return model.model_proto if isinstance(model, Made) else model


@contextlib.contextmanager
def model_files(*models: ModelSource) -> Iterator[list[Path]]:
    """The paths of models; those that are in memory lie in a temporary folder meanwhile.

    Raises:
        ModelError: a model in memory is not valid. Messages do not name its temporary file.
    """
    with scratch() as folder:
        paths = list[Path]()
        inside = dict[str, str]()
        for number, model in enumerate(models):
            if isinstance(model, str | Path):
                paths.append(Path(model))
                continue
            whole = model.model if isinstance(model, Made) else load_model(plain_source(model))
            path = folder / str(number) / "model.onnx"
            path.parent.mkdir()
            write(whole, path)
            inside[str(path)] = "the given model" if len(models) == 1 else f"model {number + 1} of the call"
            paths.append(path)
        try:
            yield paths
        except OnnxshotError as e:
            for path_text, name in inside.items():
                e.message = e.message.replace(path_text, name)
            raise


def name_of_source(model: ModelSource) -> str:
    """The name of a model in reports: its path, "(result of NAME)", or "(ModelProto)"."""
    if isinstance(model, str | Path):
        return str(model)
    given = str(getattr(getattr(model, "report", None), "input", "")) if isinstance(model, Made) else ""
    return f"(result of {Path(given).name})" if given and not given.startswith("(") else "(ModelProto)"
