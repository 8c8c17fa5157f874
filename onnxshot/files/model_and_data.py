"""A model and its data file: two files that a reader must never find one of with the other's older self.

No system renames two files in one step. So the new model is renamed into its place twice: first in a form that goes
with what a reader finds beside it at that moment, which is the one step that replaces the old result by the new.
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
    """Rename files to their places, the main one last; `final` and its data file never do not go together.

    folder: the path of a `Part` beside `final`. Raises OSError.
    """
    main, *others = files
    data = next((name for name in others if name in (f"{main}.data", Path(main).with_suffix(".bin").name)), None)
    for name in others:
        if name != data:
            put(folder / name, final.with_name(name))
    with alone_in(final.parent):  # two runs with one output must not take turns
        if data is None:
            put(folder / main, final)
        elif main.lower().endswith(".xml"):
            _publish_ir(folder, final, data)
        else:
            _publish_onnx(folder, final, data)


# ------------------------------------------------------------------ .onnx: the model names its data file


def _publish_onnx(folder: Path, final: Path, data: str) -> None:
    """Where both are there: the data under a name of its own; a model that names it so; then both as they are to be."""
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
    put(renamed, final)  # from here on, the result is the new one
    put(folder / data, place)
    put(main, final)
    first.unlink()
    (owned / NOTE).unlink()


def _free_name(final: Path) -> Path:
    """A name for the data file that nothing has; a name that is there may be one that a model needs."""
    names = (final.with_name(f"{final.name}.{number}.data") for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors in a model, those of nodes and functions too."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if isinstance(value, Sequence) or hasattr(value, "add") else (value,):
                yield from tensors(one)


# ------------------------------------------------------------------ .xml: the data file is found by its name


def _publish_ir(folder: Path, final: Path, data: str) -> None:
    """Where both are there: a data file that holds both weights; a model that reads the second; then both as they are.

    A reader asks for the weights at an offset, and does not mind what else is in the file.
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
    put(both, place)  # the old weights stay where the old model reads them
    put(shifted, final)  # from here on, the result is the new one
    finish_ir(note, final, folder)
    sync(final.parent)
    (folder.parent / NOTE).unlink()
