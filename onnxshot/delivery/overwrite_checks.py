"""Decide whether an existing file may be replaced, by who wrote it, what it is, and whether the user named it.

Nothing is written here. Each function is a `Foreign` or returns one: the reason not to replace a file, or "".
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxshot.delivery.record import VERSION_KEY, beside, outputs_of, sha256
from onnxshot.errors import OnnxshotError
from onnxshot.files.conflicts import Foreign
from onnxshot.files.regular_files import holds_nothing
from onnxshot.graph.load import external_files, is_model, metadata_of
from onnxshot.report.saving import is_own_report
from onnxshot.targets import RUNTIMES

_NOT_OURS = "onnxshot has not written it"
_MOST_TEXT = 1 << 30  # bytes up to which an IR is searched
_OPAQUE = tuple(runtime.suffix for runtime in RUNTIMES.values() if runtime.suffix != ".xml")
"""Suffixes of models whose content only their runtime can tell."""
_IR_MARK = re.compile(rb"<" + re.escape(VERSION_KEY.encode()) + rb' value="[^"<]*" ?/>')


def foreign_model(path: Path) -> str:
    """Check an .onnx file: every model that onnxshot writes has its version in the metadata."""
    try:
        return "" if VERSION_KEY in metadata_of(path) else _NOT_OURS
    except OnnxshotError as e:
        return f"{_NOT_OURS}: {e.message}"


def no_model(path: Path) -> str:
    """Check a file that the user named: a model of any tool may be replaced, and so may files of onnxshot."""
    if path.suffix.lower() in _OPAQUE or is_own_report(path) or _is_ir(path) or is_model(path):
        return ""
    try:
        return "" if holds_nothing(path) else "it is no model"
    except OSError as e:
        return f"it cannot be read: {e.strerror}"


def foreign_artifact(path: Path) -> str:
    """Check an artifact of a runtime: an IR has the metadata of its model, and a record lists the hash of others."""
    if path.suffix.lower() == ".onnx":
        return foreign_model(path)
    try:
        if path.suffix.lower() == ".xml" and path.stat().st_size <= _MOST_TEXT and _IR_MARK.search(path.read_bytes()):
            return ""
        recorded = outputs_of(beside(path.with_suffix(".onnx"))).get(path.name)
        return "" if recorded is not None and recorded == sha256(path) else _NOT_OURS
    except OSError as e:
        return f"it cannot be read: {e.strerror}"


def foreign_data(model: Path) -> Foreign:
    """Check a file of external data: the model at this path reads it, and no other model of the folder does."""

    def foreign(path: Path) -> str:
        readers = [one for one in sorted(path.parent.glob("*.onnx")) if _reads(one, path)]
        other = next((one for one in readers if not _same(one, model)), None)
        if other is not None:
            return f"{other.name} has its weights in it"
        return "" if readers else f"there is no {model.name} that has its weights in it"

    return foreign


def foreign_weights(ir: Path) -> Foreign:
    """Check the .bin file of an IR: the IR at this path exists, or a record lists the file."""

    def foreign(path: Path) -> str:
        return "" if _is_ir(ir) else foreign_artifact(path)

    return foreign


def _is_ir(path: Path) -> bool:
    """Whether a file is an IR of OpenVINO, made by any tool."""
    try:
        with path.open("rb") as file:
            return b"<net" in file.read(4096)
    except OSError:
        return False


def _reads(model: Path, data: Path) -> bool:
    try:
        return any(_same(file, data) for file in external_files(model))
    except OnnxshotError:
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
