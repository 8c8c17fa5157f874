"""Finish or undo writes that take several renames, if a run died between them.

Before the first rename, a run writes a `Note` into its temporary folder. The next run reads the note, and completes the
write if readers see the new result already; otherwise it restores the old one. Files are identified by inode, size and
modification time, so that a file that somebody else has put there since is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from onnxshot import system

NOTE = "note.json"
PAIR, IR, FOLDER = "pair", "ir", "folder"
BEFORE = "before"  # name of the old data file of an IR, in the temporary folder
_PIECE = 1 << 24  # bytes copied at a time


@dataclass(frozen=True, slots=True)
class Note:
    """One write in progress. A file that is not in place yet has the same name in the temporary folder.

    Attributes:
        kind: 'pair': a model that names its data file; 'ir': a model whose data file has the same stem; 'folder': a
            folder that replaces another by two renames.
        main: path of the model or folder, relative to the parent of the temporary folder.
        data: name of the data file; for a folder, name of the old folder in the temporary folder.
        first: name of the data file until the final model is in place; `data` where there is no interim name.
        named_first: identity of the interim model, which refers to `first`; empty where there is none.
        named_data: identity of the final model.
        placed: identity of the data file that is published first.
        shift: for 'ir', offset of the new weights in that file.
    """

    kind: str
    main: str
    data: str = ""
    first: str = ""
    named_first: Sequence[int] = ()
    named_data: Sequence[int] = ()
    placed: Sequence[int] = ()
    shift: int = 0

    def write(self, folder: Path) -> None:
        """Write the note into the temporary folder, flushed to the disk before anything is moved."""
        path = folder / NOTE
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        sync(path)
        sync(folder)


def identity(path: Path) -> list[int]:
    """Inode, size and time of a file, which renaming and linking preserve; empty where it does not exist."""
    try:
        found = path.lstat()
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, where the system supports it."""
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows, nor synced on some file systems
        file = os.open(path, os.O_RDWR if system.WINDOWS else os.O_RDONLY)  # Windows flushes what may be written
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs that use this function, while its files are renamed."""
    file, place = None, _lock_of(folder)
    with contextlib.suppress(OSError):
        file = os.open(place, os.O_RDWR | os.O_CREAT if system.WINDOWS else os.O_RDONLY)
        system.lock(file, wait=True)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)
            if place != folder:
                with contextlib.suppress(OSError):  # Windows removes no file that another process has open
                    place.unlink()


def _lock_of(folder: Path) -> Path:
    """What is locked in place of a folder: itself, or, where folders cannot be opened, a file of its name elsewhere."""
    if not system.WINDOWS:
        return folder
    name = hashlib.sha256(system.folded(folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"onnxshot-{name}.lock"


def finish(folder: Path, work: Path) -> None:
    """Finish the write of a dead run if readers see the new result already; otherwise undo it.

    Args:
        folder: its temporary folder.
        work: the folder in it that holds the files.
    """
    try:
        values: dict[str, Any] = json.loads((folder / NOTE).read_text("utf-8"))
        note = Note(**values)
    except (OSError, ValueError, TypeError):
        return  # without a note, nothing was moved
    names = [PurePath(name) for name in (note.main, note.data, note.first)]
    if any(name.is_absolute() or ".." in name.parts for name in names):
        return
    main = folder.parent / note.main
    if note.kind == FOLDER:
        if (work / note.data).is_dir() and not main.exists():
            (work / note.data).rename(main)
    elif note.kind in (PAIR, IR):
        with alone_in(folder.parent):
            (_finish_pair if note.kind == PAIR else finish_ir)(note, main, work)


def _finish_pair(note: Note, main: Path, work: Path) -> None:
    first = main.with_name(note.first)
    if note.named_first and identity(main) == list(note.named_first):
        for name in (note.data, note.main):
            if (work / name).exists():
                (work / name).replace(main.with_name(name))
    names_it = note.named_data if note.first == note.data else note.named_first
    if identity(first) == list(note.placed) and identity(main) != list(names_it):
        first.unlink()


def finish_ir(note: Note, main: Path, work: Path) -> None:
    """Finish or undo the write of an IR.

    If the new model is in place, in its interim or final form, the data file for both forms, the final model and the
    final data file are put in place, in this order. Otherwise the old data file is restored.
    """
    place, seen = main.with_name(note.data), identity(main)
    if seen in (list(note.named_first), list(note.named_data)):
        if (work / note.main).exists():
            joined(work / note.data, note.shift, work / note.data).replace(place)
            (work / note.main).replace(main)
        if (work / note.data).exists():
            (work / note.data).replace(place)
    elif identity(place) == list(note.placed) and (work / BEFORE).exists():
        (work / BEFORE).replace(place)


def joined(one: Path, shift: int, other: Path) -> Path:
    """Make a file with the bytes of `one`, and those of `other` at offset `shift`; it lies beside `other`."""
    both = other.with_name(f"{other.name}.joined")
    with both.open("wb") as file:
        with one.open("rb") as read:
            shutil.copyfileobj(read, file, _PIECE)
        file.seek(shift)
        with other.open("rb") as read:
            shutil.copyfileobj(read, file, _PIECE)
    sync(both)
    return both


def linked(path: Path, other: Path) -> Path:
    """Hard-link a file under another name, or copy it where the file system has no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
    return other
