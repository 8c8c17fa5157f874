"""Whose a file is that is there: made by an earlier run of onnxshot, part of what is replaced, or somebody else's.

Each function is a `Foreign` or makes one: it says what speaks against replacing the file, in words.
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxshot.delivery.record import VERSION_KEY, beside, outputs_of, sha256
from onnxshot.errors import OnnxshotError
from onnxshot.files.conflicts import Foreign
from onnxshot.graph.load import external_files, metadata_of

_NOT_OURS = "onnxshot has not written it"
_MOST_TEXT = 1 << 30  # bytes of an IR that are looked through
_IR_MARK = re.compile(rb"<" + re.escape(VERSION_KEY.encode()) + rb' value="[^"<]*" ?/>')


def foreign_model(path: Path) -> str:
    """Of an .onnx file: every model that onnxshot writes bears its version in the metadata."""
    try:
        return "" if VERSION_KEY in metadata_of(path) else _NOT_OURS
    except OnnxshotError as e:
        return f"{_NOT_OURS}: {e.message}"


def foreign_artifact(path: Path) -> str:
    """Of a file in the format of a runtime: an IR has the metadata of its model; of others a record tells."""
    if path.suffix.lower() == ".onnx":
        return foreign_model(path)
    try:
        if path.suffix.lower() == ".xml" and path.stat().st_size <= _MOST_TEXT and _IR_MARK.search(path.read_bytes()):
            return ""
        told = outputs_of(beside(path.with_suffix(".onnx"))).get(path.name)
        return "" if told is not None and told == sha256(path) else _NOT_OURS
    except OSError as e:
        return f"it cannot be read: {e.strerror}"


def foreign_data(model: Path) -> Foreign:
    """Of a file of external data: it goes with the model at that place, and no other model of the folder reads it."""

    def foreign(path: Path) -> str:
        readers = [one for one in sorted(path.parent.glob("*.onnx")) if _reads(one, path)]
        other = next((one for one in readers if not _same(one, model)), None)
        if other is not None:
            return f"{other.name} has its weights in it"
        return "" if readers else f"there is no {model.name} that has its weights in it"

    return foreign


def foreign_weights(ir: Path) -> Foreign:
    """Of the .bin file of an IR: it goes with the IR at that place, or a record tells of it."""

    def foreign(path: Path) -> str:
        try:
            with ir.open("rb") as file:
                if b"<net" in file.read(4096):
                    return ""
        except OSError:
            pass
        return foreign_artifact(path)

    return foreign


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
