"""Atomic writes: make a file or a folder in a temporary folder, then rename it to its final path in one step."""

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

from onnxshot import system
from onnxshot.errors import UsageError
from onnxshot.files import temporary_folders
from onnxshot.files.interrupted_writes import FOLDER, NOTE, Note, sync
from onnxshot.files.links import follow_link
from onnxshot.files.temporary_folders import Part, clear_dead

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if hasattr(errno, "EDQUOT") else (errno.ENOSPC, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_RENAME_SWAP = 2  # of macOS's renamex_np


@contextlib.contextmanager
def aside(final: Path) -> Iterator[Path]:
    """A temporary folder beside a file that is to be made; it is always removed.

    Missing parents of `final` are created, and removed again if they stay empty. Leftovers of dead runs are removed
    first.

    Args:
        final: path of the file that will be made.

    Yields:
        The empty folder.

    Raises:
        UsageError: the folder cannot be made.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in final.parents if not folder.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_dead(final.parent)
        part = Part(final.parent, final.stem or "file")
    except OSError as e:
        _remove_empty(made)
        raise UsageError(f"cannot write to {final.parent}: {e.strerror}", "choose another folder for it") from e
    try:
        yield part.path
    finally:
        part.close()
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for a file that was never written, innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder in the system's folder for temporary files; it is always removed.

    Leftovers of dead runs are removed first. Raises UsageError where the folder cannot be made, or is full.
    """
    part = scratch_part()
    try:
        with room_for("temporary files", part.path):
            yield part.path
    finally:
        part.close()


@contextlib.contextmanager
def scratch_kept() -> Iterator[Part]:
    """As `scratch`, but the folder is only removed if the block fails; otherwise the caller closes it."""
    part = scratch_part()
    try:
        yield part
    except BaseException:
        part.close()
        raise


def scratch_part() -> Part:
    """As `scratch`, but the caller closes the folder."""
    try:
        root = Path(tempfile.gettempdir())
        if root not in _cleared:
            _cleared.add(root)
            clear_dead(root)
        with room_for("temporary files", root):
            return Part(root)
    except OSError as e:
        what = f"temporary files cannot be written: {e.strerror or e}"
        raise UsageError(what, "set TMPDIR to a folder where they can be") from e


@contextlib.contextmanager
def room_for(what: str, folder: Path, *, memory: bool = False) -> Iterator[None]:
    """Say what is too large for which folder, where the block finds no room on the disk.

    Args:
        what: what the block writes, in the plural.
        folder: the temporary folder that it is written to.
        memory: whether less is written with a larger memory budget.

    Raises:
        UsageError: there is no room. An error about a file outside the folder stays as it is.
    """
    try:
        yield
    except OSError as e:
        elsewhere = isinstance(e.filename, str) and not Path(e.filename).is_relative_to(folder)
        if e.errno not in _NO_ROOM or elsewhere:
            raise
        advice = "set TMPDIR to a folder with more room"
        advice += ", or allow more memory with [[memory=SIZE]]" if memory else ""
        home = tempfile.gettempdir()
        raise UsageError(f"there is no room for {what} in {home}: {e.strerror or e}", advice) from e


def clear_dead_everywhere() -> int:
    """Remove leftovers of dead runs among temporary files and beside outputs; returns the number of bytes freed."""
    listed = temporary_folders.listed()
    return clear_dead(Path(tempfile.gettempdir())) + sum(map(clear_dead, sorted({path.parent for path in listed})))


_cleared: set[Path] = set()  # folders that were cleared; once per process, as they may hold many files


def write_file(final: Path, write: Callable[[Path], object], *, lasting: bool = True) -> None:
    """Write a file atomically.

    Args:
        final: path of the file. A link is kept, and the file that it points to is written.
        write: called with a temporary path; writes the file there.
        lasting: as in `put`.

    Raises:
        UsageError: the link or the folder does not allow it.
        OSError: the file cannot be written.
    """
    final = follow_link(final)
    with aside(final) as folder:
        part = folder / final.name
        write(part)
        put(part, final, lasting=lasting)


def put(part: Path, final: Path, *, lasting: bool = True) -> None:
    """Rename a file to its final path.

    Args:
        part: the file.
        final: its final path.
        lasting: whether to flush the file and its name to the disk, so that they survive a power failure. Files in
            temporary folders are never flushed.

    Raises:
        OSError: the file cannot be renamed, or something other than a file is at its final path.
    """
    if final.exists() and not final.is_file():
        raise OSError(errno.EEXIST, "it exists, and is not a file", str(final))
    lasting = lasting and not temporary_folders.is_inside(final)
    if lasting:
        sync(part)
    part.replace(final)
    if lasting:
        sync(final.parent)


def put_folder(made: Path, final: Path, home: Path) -> None:
    """Move a folder to its final path; a folder that was there ends up at the new one's temporary path.

    Args:
        made: the new folder.
        final: its final path.
        home: the path of the `Part` that contains `made`, on the same file system.

    Raises:
        OSError: the folder cannot be moved.
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
        note.write(mine)  # if the process dies between the renames, the next run restores the old folder
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
    """Exchange two folders in one step. Raises OSError where the operating system or file system cannot."""
    library = system.c_library()
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
    """Copy files that others have added to a folder into the folder that will replace it.

    Args:
        old: the folder that will be replaced.
        made: the new folder.
        own: paths in `old` of the files that onnxshot wrote; they are not copied.

    Raises:
        FileExistsError: an added file has the name of a new one.
        OSError: a file cannot be copied.
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
