"""What the verbs take as a model: a path, a ModelProto, its bytes or a file that holds them, or a result."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Protocol, cast, runtime_checkable

from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxshot.arguments import Advice
from onnxshot.delivery.input_files import of_model_file
from onnxshot.delivery.write_results import Made
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Read
from onnxshot.graph.load import first_line, load_model
from onnxshot.graph.model import MOST_BYTES
from onnxshot.graph.save import write

_CHUNK = 16 << 20  # bytes
_OTHERS = {  # package of the class of a value, or of one of its bases -> what to give in its place
    "torch": "export it: give what torch.onnx.export(model, (example_input,), dynamo=True) returns",
    "onnxruntime": "a session does not give its model back: give the .onnx file it was made of",
    "onnx_ir": "give onnx_ir.to_proto(model)",
    "onnx_graphsurgeon": "give onnx_graphsurgeon.export_onnx(graph)",
    "keras": "export it: model.export('model.onnx', format='onnx'), and give that path",
    "tensorflow": "convert it: tf2onnx.convert.from_keras(model) gives a ModelProto",
    "sklearn": "convert it: skl2onnx.to_onnx(model, example_input) gives a ModelProto",
}


class ONNXProgram(Protocol):
    """What `torch.onnx.export(..., dynamo=True)` returns, and anything else that gives a ModelProto."""

    @property
    def model_proto(self) -> ModelProto:
        """The model."""


@runtime_checkable
class BinaryFile(Protocol):
    """A file that is open for reading, such as `io.BytesIO` or what `open(path, "rb")` returns."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to so many bytes; none at the end."""


def _instead(value: object) -> str:
    """What to give in place of an object of a known library, which is not imported; empty for others."""
    packages = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    return next((_OTHERS[name] for name in packages if name in _OTHERS), "")


ModelSource = Annotated[str | Path | ModelProto | bytes | Made | ONNXProgram | BinaryFile, Advice(_instead)]
"""A path, a ModelProto, its bytes or an open file of them, an `ONNXProgram` of torch, or a result of `quantize`,
`tune`, `prune`, `shrink` or `compress`."""


def plain_source(model: ModelSource) -> str | Path | ModelProto:
    """The path or ModelProto that a model is read from.

    Raises:
        ModelError: the bytes are no model, a file cannot be read, the model has none, or it is over 2 GiB, more than a
            ModelProto may have.
    """
    if isinstance(model, str | Path | ModelProto):
        return model
    if isinstance(model, Made):
        return model.model_proto
    if isinstance(model, bytes):
        return _parsed(model, "the given bytes are")
    if isinstance(model, BinaryFile):
        if (path := _path_of(model)) is not None:
            return path  # so that no result replaces it, and its external data is found
        return _parsed(_content(model), "the given file is")
    try:
        proto: object = model.model_proto
    except Exception as e:  # code of another library
        what = f"the given {type(model).__name__} gives no ModelProto: {type(e).__name__}: {first_line(e)}"
        raise ModelError(what, "save it to a file, and give the path") from e
    if not isinstance(proto, ModelProto):
        raise ModelError(f"model_proto of the given {type(model).__name__} is {type(proto).__name__}, no ModelProto")
    return proto


def origin_of(model: ModelSource) -> tuple[Read, ...]:
    """The file that a result in memory was made from, which a result of that result must not replace either."""
    given = str(getattr(getattr(model, "report", None), "input", "")) if isinstance(model, Made) else ""
    return of_model_file(given, "the model that it was made from") if given else ()


def _path_of(file: BinaryFile) -> Path | None:
    """The path of an open file on the disk; None for others."""
    name = getattr(file, "name", None)
    if not isinstance(file, io.BufferedIOBase | io.RawIOBase) or not isinstance(name, str):
        return None
    with contextlib.suppress(OSError, ValueError):
        if file.readable() and os.path.samestat(os.fstat(file.fileno()), Path(name).stat()):
            return Path(name)
    return None


def _parsed(content: bytes | bytearray, what: str) -> ModelProto:
    try:
        return ModelProto.FromString(cast(bytes, content))  # protobuf takes both
    except DecodeError as e:
        raise ModelError(f"{what} no ONNX model", "give those of an .onnx file") from e


def _content(file: BinaryFile) -> bytearray:
    """What an open file holds from its position on; all of it where it stands at its end, as after it was written."""
    content, rewind = bytearray(), getattr(file, "seek", None)
    try:
        while (chunk := file.read(_CHUNK)) or (not content and rewind is not None):
            if isinstance(chunk, str):
                raise ModelError("the given file is open as text", "open it with mode 'rb'")
            if not chunk and rewind is not None:
                rewind(0)
                rewind = None
            content += chunk
            if len(content) > MOST_BYTES:
                raise ModelError("the given file holds over 2 GiB, more than a ModelProto may have", "give its path")
    except (OSError, ValueError, TypeError) as e:  # closed, not readable, or no file
        what = f"the given {type(file).__name__} cannot be read: {first_line(e)}"
        raise ModelError(what, "open it with mode 'rb'") from e
    return content


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
