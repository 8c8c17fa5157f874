"""Load a model from a path or a ModelProto. Other formats are refused by name, with the step that converts to ONNX."""

from __future__ import annotations

import contextlib
import difflib
import zipfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from onnxshot.errors import ModelError, UsageError
from onnxshot.files.regular_files import check_regular, is_special
from onnxshot.files.urls import refuse_remote
from onnxshot.graph.attribute_checks import check_attributes
from onnxshot.graph.copies import copy_of as copy_of  # part of this module's interface
from onnxshot.graph.endless_loops import check_loops
from onnxshot.graph.lean_parse import parse_lean
from onnxshot.graph.local_functions import check_functions
from onnxshot.graph.model import Model
from onnxshot.graph.onnx_checker import check, loads, missing_imports
from onnxshot.graph.own_file import OwnFile

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
    ".mlpackage": ("a Core ML model", "start from the ONNX file or the source framework"),
    ".gguf": ("a GGUF model", "start from the model it was converted from: optimum-cli export onnx --model NAME out/"),
    ".pdmodel": ("a Paddle model", "paddle2onnx --model_dir . --model_filename FILE.pdmodel --save_file model.onnx"),
    ".pbtxt": ("a model written as text", "onnx.save(onnx.load(FILE), 'model.onnx')"),
    ".textproto": ("a model written as text", "onnx.save(onnx.load(FILE), 'model.onnx')"),
    ".onnxtxt": ("a model written as text", "onnx.save(onnx.load(FILE), 'model.onnx')"),
}
_MAGIC = (  # offset, bytes, (what it is, the step that makes it ONNX)
    (4, b"TFL3", _OTHER_FORMATS[".tflite"]),
    (0, b"\x89HDF\r\n\x1a\n", _OTHER_FORMATS[".h5"]),
    (0, b"GGUF", _OTHER_FORMATS[".gguf"]),
    (4, b"ORTM", _OTHER_FORMATS[".ort"]),
    (0, b"version https://git-lfs", ("a Git LFS pointer, not the file itself", "git lfs pull")),
    (0, b"<!DOCTYPE", ("a web page, saved in place of the file", "download the file itself")),
    (0, b"<html", ("a web page, saved in place of the file", "download the file itself")),
    (0, b"<?xml", _OTHER_FORMATS[".xml"]),
    *((0, bytes((0x80, n)), ("a pickle, most likely a PyTorch checkpoint", _TORCH)) for n in range(2, 6)),
)
_DAMAGED = (  # what protobuf, numpy and onnx raise for invalid content
    UnicodeDecodeError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, MemoryError,
    EncodeError,
)  # fmt: skip


def load_model(source: str | Path | ModelProto) -> Model:
    """Load a model. External weights stay on disk until they are read.

    Args:
        source: path of an .onnx file, or a ModelProto, which is not changed.

    Returns:
        The model, whose graph has passed ONNX's checker, or which ONNX Runtime loads.

    Raises:
        ModelError: the file is missing, is not ONNX, is damaged, or its graph is not valid.
    """
    if isinstance(source, ModelProto):
        return _build(source, None)
    path = Path(source)
    proto, own = _parsed(path)
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise ModelError(f"{_printable(path)} holds no ONNX graph", "it may be truncated, or another kind of file")
    locations = [location for location in _locations(proto) if location != path.name]
    read = [own]
    for location in locations:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # `_build` says what is wrong with it
            read.append(OwnFile.of(path.parent / location, location))
    model = _build(proto, path, own)
    model.data_files = tuple(path.parent / location for location in locations)
    model.read_files = tuple(read)
    return model


def _build(proto: ModelProto, path: Path | None, own: OwnFile | None = None) -> Model:
    where = _printable(path) if path else "the given model"
    try:
        for refuse in (check_functions, check_attributes, check_loops):
            refuse(proto)
        model = Model(proto, folder=path.parent if path else None, path=path, own=own)
        for domain, version in missing_imports(proto).items():
            model.require_domain(domain, version)
        _check(model, proto)
    except ModelError as e:
        raise ModelError(f"{where}: {first_line(e.message)}", first_line(e.hint) if e.hint else "") from e
    except _DAMAGED as e:
        raise ModelError(f"{where} is damaged: {first_line(e)}", "export or copy it again") from e
    return model


def _printable(path: Path) -> str:
    """The path as one printable line."""
    return first_line(str(path), limit=4096)


def _check(model: Model, given: ModelProto) -> None:
    """Check the versions that the model needs, its types and texts, and run ONNX's checker."""
    if not model.envelope.opset_import:
        raise ModelError("it imports no operator set")
    versions: dict[str, int] = {}
    for entry in model.envelope.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"it imports versions {versions[domain]} and {entry.version} of the operators {domain!r}")
    newest = onnx.defs.onnx_opset_version()
    if model.opset > newest or model.opset < 1:
        raise ModelError(f"it uses opset {model.opset}; this onnx package knows 1 to {newest}", "update onnx")
    if model.envelope.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"it has IR version {model.envelope.ir_version}; this onnx package knows up to {onnx.IR_VERSION}",
            "update onnx",
        )
    _check_texts(model)
    proto, _ = model.skeleton()
    for info in (*proto.graph.input, *proto.graph.output):
        kind = info.type.tensor_type.elem_type
        if kind not in onnx.TensorProto.DataType.values():
            raise ModelError(f"{info.name!r} has the unknown type {kind}")
    try:
        check(proto)
    except (onnx.checker.ValidationError, RuntimeError, *_DAMAGED) as e:
        what = f"it is not a valid ONNX model: {first_line(e)}"
        if not isinstance(e, onnx.checker.ValidationError) or not _runtime_loads(model, given):
            raise ModelError(what) from e
        model.notes.append(f"ONNX's checker reports: {what}; ONNX Runtime loads it")


def _runtime_loads(model: Model, given: ModelProto) -> bool:
    """Whether ONNX Runtime loads a model that ONNX's checker refuses. Where the opset is known, the runtime decides."""
    if all(entry.domain not in ("", "ai.onnx") for entry in given.opset_import):
        return False
    if model.path is not None:
        return loads(model.path)
    try:
        return loads(bytes(given.SerializeToString()))
    except _DAMAGED:
        return False


def _check_texts(model: Model) -> None:
    """Refuse texts that are not UTF-8 where passes and reports read them; protobuf returns those as bytes."""
    texts: list[str | bytes] = [text for entry in model.metadata.items() for text in entry]
    for graph in model.graphs():
        texts.extend(graph.value_infos)
        for info in graph.value_infos.values():
            if info.type.HasField("tensor_type"):
                texts.extend(d.dim_param for d in info.type.tensor_type.shape.dim)
    for text in texts:
        if isinstance(text, bytes):
            raise ModelError(f"the text {text[:40]!r} in it is not UTF-8", "export the model again")


def first_line(error: BaseException | str, limit: int = 400) -> str:
    """Return the first non-empty line of an error, at most `limit` characters, unprintable ones as '?'."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line[:limit])


def other_format(suffix: str) -> tuple[str, str] | None:
    """What a file of a suffix such as ".pt" is, and the step that makes it ONNX; None for other suffixes."""
    return _OTHER_FORMATS.get(suffix.lower())


def _refuse_other_formats(path: Path) -> None:
    try:
        if path.is_dir():
            raise _folder_error(path)
        if not path.is_file():
            if is_special(path):
                check_regular(_printable(path), "the model", ModelError)
            refuse_remote(path, ModelError, "the model")
            raise ModelError(f"{_printable(path)} does not exist or is not a file", _nearest(path))
        with path.open("rb") as f:
            head = f.read(32)
    except (OSError, ValueError) as e:  # no permission, a name too long
        raise ModelError(f"{_printable(path)} cannot be read: {first_line(e)}") from e
    if not head:
        raise ModelError(f"{_printable(path)} is empty", "export or copy it again")
    kind = _OTHER_FORMATS.get(path.suffix.lower())
    if head[:4] == b"PK\x03\x04":
        kind = _zip_kind(path) or kind
    if kind is None:
        kind = next((known for start, magic, known in _MAGIC if head[start:].startswith(magic)), None)
    if kind is not None:
        raise ModelError(f"{_printable(path)} is {kind[0]}, not ONNX", kind[1])


def _nearest(path: Path) -> str:
    """A hint with the .onnx files of the folder whose names are closest to the given one."""
    if path.is_symlink():
        return "it is a link that leads to no file"
    if not path.parent.is_dir():
        return f"the folder {_printable(path.parent)} does not exist either"
    names = [p.name for p in path.parent.glob("*.onnx")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.0)
    return f"in that folder: {first_line(', '.join(near))}" if near else "check the path"


def _zip_kind(path: Path) -> tuple[str, str] | None:
    """The kind of a zip archive, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        names = []
    if "model.weights.h5" in names:
        return _OTHER_FORMATS[".keras"]
    if any("/code/" in name for name in names):
        return _OTHER_FORMATS[".torchscript"]
    if path.suffix.lower() in _OTHER_FORMATS:
        return None
    return "a zip archive, most likely a PyTorch checkpoint", _TORCH


def _folder_error(path: Path) -> ModelError:
    if (path / "saved_model.pb").exists():
        return ModelError(
            f"{_printable(path)} is a TensorFlow SavedModel, not ONNX",
            f"python -m tf2onnx.convert --saved-model {_printable(path)} --output model.onnx",
        )
    kind = _OTHER_FORMATS.get(path.suffix.lower())
    if kind is not None:
        return ModelError(f"{_printable(path)} is {kind[0]}, not ONNX", kind[1])
    inside = sorted(str(p.relative_to(path)) for p in path.rglob("*.onnx"))
    if (path / "config.json").exists():
        return ModelError(
            f"{_printable(path)} is a Hugging Face folder, not an ONNX file",
            f"name the file inside: {first_line(inside[0])}"
            if inside
            else f"optimum-cli export onnx --model {_printable(path)} out/",
        )
    return ModelError(
        f"{_printable(path)} is a folder, not an ONNX file",
        f"name the file inside: {first_line(', '.join(inside[:3]))}" if inside else "name an .onnx file",
    )


def external_files(path: Path) -> list[Path]:
    """Return the external data files that an .onnx file names, sorted. They need not exist.

    Raises:
        ModelError: as `load_model`; or a file is outside the folder of the model.
    """
    found = [location for location in _locations(_parsed(path)[0]) if location != path.name]
    for location in found:
        if Path(location).is_absolute() or ".." in Path(location).parts:
            what = f"external data at {location!r} is outside the folder of {path}"
            raise ModelError(what, "copy it beside the model")
    return [path.parent / location for location in found]


def refuse_suffix(place: Path) -> None:
    """Refuse an output path whose suffix belongs to another format.

    Raises:
        UsageError: with the format, and a hint.
    """
    kind = _OTHER_FORMATS.get(place.suffix.lower())
    if kind is not None:
        what = f"the output {_printable(place)} has the suffix of {kind[0]}"
        raise UsageError(what, "name an .onnx file with [[output|-o]]")


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata_props of an .onnx file without checking its graph.

    Raises:
        ModelError: the file does not parse.
    """
    return {str(entry.key): str(entry.value) for entry in _parsed(path)[0].metadata_props}


def is_model(path: Path) -> bool:
    """Whether a file parses as an ONNX model that has a graph, whatever its name."""
    try:
        graph = _parsed(path)[0].graph
    except ModelError:
        return False
    return bool(graph.output or graph.node)


def _locations(proto: ModelProto) -> list[str]:
    """The locations of external data that the tensors of a model name, sorted."""
    found: set[str] = set()
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [inner for a in attributes for inner in (*a.graphs, *([a.g] if a.HasField("g") else []))]
        tensors = [*graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
        tensors += [part for s in graph.sparse_initializer for part in (s.values, s.indices)]
        found.update(e.value for t in tensors for e in t.external_data if e.key == "location")
    return sorted(found)


def _parsed(path: Path) -> tuple[ModelProto, OwnFile]:
    """Parse the file without reading external data, and large weights of a large file."""
    _refuse_other_formats(path)
    try:
        own = OwnFile.of(path)
        return parse_lean(path), own
    except DecodeError as e:
        raise ModelError(
            f"{_printable(path)} is damaged or not an ONNX file: it does not parse", "export or copy it again"
        ) from e
    except (OSError, ValueError, MemoryError, RuntimeError) as e:
        raise ModelError(f"{_printable(path)} cannot be read: {first_line(e)}") from e
