"""Load a model from a path or a ModelProto; what is not ONNX is refused by name, with the step that makes it ONNX."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxshot.errors import ModelError
from onnxshot.graph.model import Model

_TORCH = "export it where its class is at hand: torch.onnx.export(model, example_input, 'model.onnx', dynamo=True)"
_OTHER_FORMATS = {  # suffix -> (what it is, the step that makes it ONNX)
    ".pt": ("a PyTorch checkpoint", f"{_TORCH}; a YOLO checkpoint: yolo export model=FILE.pt format=onnx"),
    ".pth": ("a PyTorch checkpoint", _TORCH),
    ".ckpt": ("a training checkpoint", _TORCH),
    ".pt2": ("a torch.export program", "torch.onnx.export(torch.export.load(FILE), 'model.onnx', dynamo=True)"),
    ".torchscript": ("a TorchScript module", "torch.onnx.export(torch.jit.load(FILE), example_input, 'model.onnx')"),
    ".safetensors": ("weights without a graph", "export the model: optimum-cli export onnx --model NAME out/"),
    ".bin": ("weights without a graph", "export the model, or name the .onnx file"),
    ".h5": ("a Keras model", "python -m tf2onnx.convert --keras FILE.h5 --output model.onnx"),
    ".keras": ("a Keras model", "in Python: keras.models.load_model(FILE).export('model.onnx', format='onnx')"),
    ".pb": ("a TensorFlow graph", "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx"),
    ".tflite": ("a TensorFlow Lite model", "python -m tf2onnx.convert --tflite FILE.tflite --output model.onnx"),
    ".xml": ("an OpenVINO IR", "an IR cannot become ONNX again: start from the ONNX file it was converted from"),
    ".engine": ("a TensorRT engine", "an engine cannot become ONNX again: start from the ONNX file it was built from"),
    ".plan": ("a TensorRT engine", "an engine cannot become ONNX again: start from the ONNX file it was built from"),
    ".trt": ("a TensorRT engine", "an engine cannot become ONNX again: start from the ONNX file it was built from"),
    ".ort": ("an ORT-format model", "start from the ONNX file it was converted from"),
    ".mlmodel": ("a Core ML model", "start from the ONNX file or the source framework"),
}


def load_model(source: str | Path | ModelProto) -> Model:
    """Load a model; weights stay on disk where they are external.

    Raises:
        ModelError: the file is missing, is not ONNX, is damaged, or its graph is not a valid ONNX graph.
    """
    if isinstance(source, ModelProto):
        model = Model(source)
        _check(model, "the given model")
        return model
    path = Path(source)
    _refuse_other_formats(path)
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as e:
        raise ModelError(f"{path} is damaged or not an ONNX file: it does not parse", "export or copy it again") from e
    except (OSError, ValueError, MemoryError, RuntimeError) as e:
        raise ModelError(f"{path} cannot be read: {first_line(e)}") from e
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{path} holds no ONNX graph", "it may be truncated, or another kind of file")
    try:
        model = Model(proto, folder=path.parent, path=path)
    except ModelError as e:
        raise ModelError(f"{path}: {e.message}", e.hint) from e
    except (UnicodeDecodeError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
        raise ModelError(f"{path} is damaged: {first_line(e)}", "export or copy it again") from e
    _check(model, str(path))
    return model


def _check(model: Model, where: str) -> None:
    """Hold the graph against ONNX's own checker and the versions this installation knows."""
    if not model.envelope.opset_import:
        raise ModelError(f"{where} names no operator set")
    newest = onnx.defs.onnx_opset_version()
    if model.opset > newest or model.opset < 1:
        raise ModelError(f"{where} uses opset {model.opset}; this onnx package knows 1 to {newest}", "update onnx")
    if model.envelope.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{where} has IR version {model.envelope.ir_version}; this onnx package knows up to {onnx.IR_VERSION}",
            "update onnx",
        )
    proto, _ = model.skeleton()
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as e:
        raise ModelError(f"{where} is not a valid ONNX model: {first_line(e)}") from e


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error, short enough for one line of a terminal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _refuse_other_formats(path: Path) -> None:
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            raise ModelError(
                f"{path} is a TensorFlow SavedModel, not ONNX",
                f"python -m tf2onnx.convert --saved-model {path} --output model.onnx",
            )
        if (path / "config.json").exists():
            inside = sorted(p.name for p in path.rglob("*.onnx"))
            raise ModelError(
                f"{path} is a Hugging Face folder, not an ONNX file",
                f"name the file inside: {inside[0]}" if inside else f"optimum-cli export onnx --model {path} out/",
            )
        raise ModelError(f"{path} is a folder, not an ONNX file", "name the .onnx file inside it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx"))[:3] if path.parent.is_dir() else []
        raise ModelError(f"{path} does not exist", f"in that folder: {', '.join(near)}" if near else "check the path")
    with path.open("rb") as f:
        head = f.read(16)
    if not head:
        raise ModelError(f"{path} is empty", "export or copy it again")
    kind = _OTHER_FORMATS.get(path.suffix.lower())
    if kind is None and head[4:8] == b"TFL3":
        kind = _OTHER_FORMATS[".tflite"]
    elif kind is None and head[:4] == b"PK\x03\x04":
        kind = ("a zip archive, most likely a PyTorch checkpoint or TorchScript module", _TORCH)
    elif kind is None and head[:2] == b"\x80\x02":
        kind = ("a pickle, most likely a PyTorch checkpoint", _TORCH)
    elif kind is None and head[:8] == b"\x89HDF\r\n\x1a\n":
        kind = _OTHER_FORMATS[".h5"]
    if kind is not None:
        raise ModelError(f"{path} is {kind[0]}, not ONNX", kind[1])
