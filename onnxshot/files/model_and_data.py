"""Publish a model and its data file together, so that a reader never sees a new file with an old one.

No system renames two files in one step. So the model is renamed into place twice: first in a form that refers to data
that is there at that moment, which is the single step that replaces the old result with the new one, and then in its
final form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from onnxshot.files.atomic_write import put
from onnxshot.files.interrupted_writes import (
    BEFORE,
    IR,
    NOTE,
    PAIR,
    Note,
    alone_in,
    finish_ir,
    identity,
    joined,
    linked,
    sync,
)

_CONST = re.compile(rb'(<layer\b[^>]*\btype="Const"[^>]*>\s*<data\b[^>]*\boffset=")(\d+)(")')
_ALIGN = 4096


def publish(folder: Path, final: Path, files: Sequence[str]) -> None:
    """Rename files to their final paths; `final` and its data file match at every moment.

    Args:
        folder: the path of a `Part` beside `final`, which holds the files.
        final: path of the main file.
        files: names of the files in `folder`, the main one first.

    Raises:
        OSError: a file cannot be renamed.
    """
    main, *others = files
    own = (f"{main}.data", f"{main}_data", Path(main).with_suffix(".bin").name)
    data = next((name for name in others if name in own), None)
    for name in others:
        if name != data:
            put(folder / name, final.with_name(name))
    with alone_in(final.parent):  # the renames of two runs with the same output must not interleave
        if data is None:
            put(folder / main, final)
        elif main.lower().endswith(".xml"):
            _publish_ir(folder, final, data)
        else:
            _publish_onnx(folder, final, data)


# ------------------------------------------------------------------ .onnx: the model names its data file


def _publish_onnx(folder: Path, final: Path, data: str) -> None:
    """Publish an .onnx file and its data.

    Where both files exist already, the data is first published under an unused name, then a model that refers to that
    name, then both files in their final form.
    """
    main, place, owned = folder / final.name, final.with_name(data), folder.parent
    named = identity(main)
    if not (final.exists() and place.exists()):
        Note(PAIR, final.name, data, data, (), named, identity(folder / data)).write(owned)
        put(folder / data, place)
        put(main, final)
        (owned / NOTE).unlink()
        return
    first = _free_name(final)
    renamed = folder / f"{final.name}.renamed"
    proto = onnx.load(str(main), format="protobuf", load_external_data=False)
    for tensor in tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == data:
                entry.value = first.name
    renamed.write_bytes(proto.SerializeToString(deterministic=True))
    source = linked(folder / data, folder / f"{data}.second")
    Note(PAIR, final.name, data, first.name, identity(renamed), named, identity(source)).write(owned)
    put(source, first)
    put(renamed, final)  # from here on, readers see the new result
    put(folder / data, place)
    put(main, final)
    first.unlink()
    (owned / NOTE).unlink()


def _free_name(final: Path) -> Path:
    """An unused path for the data file; a model may need a file that exists."""
    names = (final.with_name(f"{final.name}.{number}.data") for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors in a model, including those in nodes and functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if isinstance(value, Sequence) or hasattr(value, "add") else (value,):
                yield from tensors(one)


# ------------------------------------------------------------------ .xml: the data file is found by its name


def _publish_ir(folder: Path, final: Path, data: str) -> None:
    """Publish an OpenVINO IR: an .xml file and its .bin file of weights.

    Where both files exist already, a .bin file with the old and the new weights is published first, then an .xml file
    that reads the new weights at their offset in it, then both files in their final form. Readers ignore bytes of the
    .bin file that they do not refer to.
    """
    main, place = folder / final.name, final.with_name(data)
    if not (final.exists() and place.exists()):
        put(folder / data, place)
        put(main, final)
        return
    shift = -(-max(place.stat().st_size, (folder / data).stat().st_size) // _ALIGN) * _ALIGN
    shifted = folder / f"{final.name}.shifted"
    shifted.write_bytes(_CONST.sub(lambda m: m[1] + str(int(m[2]) + shift).encode() + m[3], main.read_bytes()))
    linked(place, folder / BEFORE)
    both = joined(place, shift, folder / data)
    note = Note(IR, final.name, data, data, identity(shifted), identity(main), identity(both), shift)
    note.write(folder.parent)
    put(both, place)  # the old weights keep their offsets for the old model
    put(shifted, final)  # from here on, readers see the new result
    finish_ir(note, final, folder)
    sync(final.parent)
    (folder.parent / NOTE).unlink()
