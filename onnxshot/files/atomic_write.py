"""Put one file, or one folder, at its place in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxshot.errors import UsageError
from onnxshot.files import temporary_folders
from onnxshot.files.interrupted_writes import FOLDER, NOTE, Note, sync
from onnxshot.files.links import follow_link
from onnxshot.files.temporary_folders import Part, clear_dead

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_RENAME_SWAP = 2  # of macOS's renamex_np


@contextlib.contextmanager
def aside(final: Path) -> Iterator[Path]:
    """An empty folder beside a file that is to be made; always removed, and folders that were made for it if empty.

    What a dead run has left beside it goes first. Raises UsageError where it cannot be made.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in final.parents if not folder.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_dead(final.parent)
        part = Part(final.parent, final.stem or "file")
    except OSError as e:
        _remove_empty(made)
        raise UsageError(f"cannot write to {final.parent}: {e.strerror}") from e
    try:
        yield part.path
    finally:
        part.close()
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Take back folders that were made for a file that was never written; inner ones come first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder for files that nobody is to see, where the system keeps such; always removed.

    What dead runs have left there goes first. Raises UsageError where it cannot be made.
    """
    part = scratch_part()
    try:
        yield part.path
    finally:
        part.close()


@contextlib.contextmanager
def scratch_kept() -> Iterator[Part]:
    """As `scratch`, but where the block succeeds the folder stays, for whoever asked to close it."""
    part = scratch_part()
    try:
        yield part
    except BaseException:
        part.close()
        raise


def scratch_part() -> Part:
    """As `scratch`, to be closed by whoever asks."""
    try:
        root = Path(tempfile.gettempdir())
        if root not in _cleared:
            _cleared.add(root)
            clear_dead(root)
        return Part(root)
    except OSError as e:
        raise UsageError(f"there is no room for temporary files: {e.strerror or e}", "set TMPDIR to a folder") from e


def clear_dead_everywhere() -> int:
    """Remove what dead runs have left among the system's temporary files and beside their outputs; how many bytes."""
    listed = temporary_folders.listed()
    return clear_dead(Path(tempfile.gettempdir())) + sum(map(clear_dead, sorted({path.parent for path in listed})))


_cleared: set[Path] = set()  # once a process is enough: others may have many files there


def write_file(final: Path, write: Callable[[Path], object], *, lasting: bool = True) -> None:
    """Have `write` make a file aside, and put it at its place. Raises UsageError or OSError where that cannot be.

    final: a link stays, and what it leads to is written. lasting: as `put` has it.
    """
    final = follow_link(final)
    with aside(final) as folder:
        part = folder / final.name
        write(part)
        put(part, final, lasting=lasting)


def put(part: Path, final: Path, *, lasting: bool = True) -> None:
    """Rename a file to its place.

    lasting: have it on the disk before that and after it, so that it outlives a loss of power; what lies in a folder of
    our own does not. Raises OSError, also where something is there that is no file.
    """
    if final.exists() and not final.is_file():
        raise OSError(errno.EEXIST, "something is there that is no file", str(final))
    lasting = lasting and not temporary_folders.is_inside(final)
    if lasting:
        sync(part)
    part.replace(final)
    if lasting:
        sync(final.parent)


def put_folder(made: Path, final: Path, home: Path) -> None:
    """Put a folder at its place; what was there is then where the new one was made. Raises OSError.

    home: the path of the `Part` that it was made in, at any depth, which lies on the same file system.
    """
    for path in made.rglob("*"):
        sync(path)
    sync(made)
    if not final.exists():
        made.rename(final)
        sync(final.parent)
        return
    try:
        exchange(made, final)
    except OSError:
        old, mine = home / "replaced", home.parent
        note = Note(FOLDER, final.relative_to(mine.parent).as_posix(), old.name)
        note.write(mine)  # should we die between the two, the next run brings the old one back
        final.rename(old)
        try:
            made.rename(final)
        except OSError:
            old.rename(final)
            raise
        (mine / NOTE).unlink()
        old.rename(made)
    sync(final.parent)


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step. Raises OSError where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    a, b = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(a, b, _RENAME_SWAP)
    elif library is not None and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def take_along(old: Path, made: Path, own: set[str]) -> None:
    """Put into a new folder what somebody else has added to the one that it is to replace.

    own: the files that go with the old one, by their paths in it. Raises FileExistsError where one of the others has
    the name of a new one; OSError.
    """
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                (made / name).mkdir(parents=True, exist_ok=True)
        elif name.as_posix() not in own:
            if os.path.lexists(made / name):
                raise FileExistsError(errno.EEXIST, f"{name} was added to it, and a new file has that name", str(old))
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, made / name, follow_symlinks=False)
