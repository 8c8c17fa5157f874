"""What a run is about to put at its place, noted in its own folder, so that the next run can finish it or take it back.

A file of the note is known again by its inode, size and time: one that somebody has put there since is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

NOTE = "note.json"
PAIR, IR, FOLDER = "pair", "ir", "folder"
BEFORE = "before"  # the old data file of an ir, in our own folder
_PIECE = 1 << 24  # bytes copied at a time


@dataclass(frozen=True, slots=True)
class Note:
    """One thing under way. A file that is not at its place yet lies in our own folder under the same name.

    Attributes:
        kind: pair: a model that names its data file; ir: a model with a data file of its own stem; folder: a folder
            that gives way to another, by two renames.
        main: the model, or the folder: a path from where our own folder is.
        data: the data file; or the name that the old folder has, in ours, as long as the new one is not there.
        first: the name that the data file has until the model that names `data` is there; `data` itself where none is.
        named_first: the model that goes with what is there first; empty where that is `data` as it is to be.
        named_data: the model as it is to be.
        placed: the data file that is there first.
        shift: of an ir, where the new weights begin in that file.
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
        """Write it into the folder; it is there before anything is moved."""
        path = folder / NOTE
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        sync(path)
        sync(folder)


def identity(path: Path) -> list[int]:
    """What is the same of a file that was renamed or linked, and of no other; empty where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk, as far as the system can."""
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows, nor synced on some file systems
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have a folder to ourselves, among all runs that ask for that, while files of it are renamed."""
    file = None
    with contextlib.suppress(ImportError, OSError):  # Windows; a file system that locks no folders
        import fcntl

        file = os.open(folder, os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def finish(folder: Path, work: Path) -> None:
    """Finish what a dead run has noted in its folder, where a reader sees the new result already; else take it back.

    work: the folder in it that the files were made in.
    """
    try:
        values: dict[str, Any] = json.loads((folder / NOTE).read_text("utf-8"))
        note = Note(**values)
    except (OSError, ValueError, TypeError):
        return  # nothing was moved yet
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
    """Where the new model is there, in either form: the data for both forms, the last form, and its data alone."""
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
    """A file with the bytes of one, and from `shift` on those of another, beside that."""
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
    """The file under another name, without its bytes being copied where the file system can do that."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
    return other
