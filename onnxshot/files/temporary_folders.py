"""Folders for unfinished files: marked, locked by their process, and removed by the next run if that process died."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path

from onnxshot import system
from onnxshot.files.interrupted_writes import NOTE, finish

MARK = "onnxshot-part.json"
"""The file that marks a folder as onnxshot's. The process that owns the folder holds a lock on it."""

WORK = "work"
_CONTENT = {"format": "onnxshot part", "version": 1}
_NAME = re.compile(r"(?:\..*\.)?onnxshot-[a-z0-9_]{8}(?:\.part)?")
_TRIES = 20
_LONGEST_STEM = 40  # characters of the final file's stem in the name of the folder beside it


class Part:
    """A temporary folder of this process.

    Attributes:
        path: the folder to work in, empty at first; `close` removes it with all its content.
    """

    def __init__(self, parent: Path, stem: str = "") -> None:
        """Make a new folder in `parent`; with `stem`, a hidden one with the stem in its name. Raises OSError."""
        beside = {"prefix": f".{stem[:_LONGEST_STEM]}.onnxshot-", "suffix": ".part"}
        alone = {"prefix": "onnxshot-"}
        for _ in range(_TRIES):
            folder = None
            try:
                # From Python 3.12 on it is absolute. One line: an interrupt between two would lose the folder.
                folder = parent / Path(tempfile.mkdtemp(dir=parent, **(beside if stem else alone))).name
                # Until it is marked, another run may remove it as a dead run's.
                with contextlib.suppress(FileNotFoundError):
                    if self._take(folder):
                        if stem:
                            _enlist(folder)
                        return
            except BaseException:  # such as the exception that a signal raises
                if hasattr(self, "_finalizer"):
                    self.close()
                if folder is not None:
                    with contextlib.suppress(OSError):
                        clear(folder)
                raise
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    @classmethod
    def at(cls, folder: Path) -> Part | None:
        """Make a folder of a given name; None where a living process owns it. Leftovers of a dead run are removed.

        Raises FileExistsError where something exists there that onnxshot did not make.
        """
        part = cls.__new__(cls)
        for _ in range(_TRIES):
            try:
                folder.mkdir()
            except FileExistsError:
                if not (folder / MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
                    raise
            with contextlib.suppress(FileNotFoundError):
                if part._take(folder):
                    return part
                return None
        return None

    def _take(self, folder: Path) -> bool:
        """Mark and lock the folder; returns whether this process owns it now."""
        finalizer = None
        file = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | system.NO_FOLLOW | system.BINARY, 0o600)
        try:
            if _lock(file, folder / MARK) is False:
                os.close(file)
                return False
            if os.fstat(file).st_size and not _is_ours(file, folder):
                raise FileExistsError(errno.EEXIST, "it exists, and onnxshot has not made it", str(folder))
            self._held = folder, [file], os.getpid()
            finalizer = weakref.finalize(self, _let_go, *self._held)
        except BaseException:
            if finalizer is None:
                os.close(file)
            raise
        self._finalizer = finalizer
        self.path = folder / WORK
        try:
            finish(folder, self.path)
            shutil.rmtree(self.path, ignore_errors=True)
            (folder / NOTE).unlink(missing_ok=True)
            if not os.fstat(file).st_size:
                os.write(file, json.dumps(_CONTENT).encode())
            self.path.mkdir()
        except OSError:
            self._finalizer()
            raise
        return True

    def close(self) -> None:
        """Remove the folder; the next run removes what cannot be removed now."""
        try:
            self._finalizer()
        except BaseException:  # a signal has cut it off, and no finalizer is called twice
            _let_go(*self._held)
            raise


def clear_dead(parent: Path) -> int:
    """Remove the temporary folders of dead processes in a folder, and finish or undo their interrupted writes.

    Returns the number of bytes that were freed.
    """
    freed = 0
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        found = [Path(e.path) for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in found:
            with contextlib.suppress(OSError):
                freed += clear(folder)
    return freed


def clear(folder: Path) -> int:
    """Remove one temporary folder if onnxshot made it and its process is dead; returns the number of bytes freed."""
    try:
        file = os.open(folder / MARK, os.O_RDWR | system.NO_FOLLOW | system.BINARY)
    except FileNotFoundError:
        folder.rmdir()  # its process died before marking it; a folder of somebody else is not empty, and stays
        return 0
    held = [file]
    try:
        mine = not hasattr(os, "geteuid") or os.fstat(file).st_uid == os.geteuid()
        if not mine or _lock(file, folder / MARK) is not True or not _is_ours(file, folder):
            return 0
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        finish(folder, folder / WORK)
        _remove(folder, held)
        return size
    finally:
        if held:
            os.close(held.pop())


def is_inside(path: Path) -> bool:
    """Whether a path lies in a temporary folder of onnxshot."""
    return any((folder / MARK).exists() for folder in path.parents)


def listed() -> list[Path]:
    """The temporary folders beside outputs that still exist, as far as this machine's list knows them."""
    found = []
    with contextlib.suppress(OSError):
        for entry in _list().iterdir():
            with contextlib.suppress(OSError, ValueError):
                path = Path(entry.read_text("utf-8"))
                if path.name == entry.name and path.is_dir():
                    found.append(path)
                else:
                    entry.unlink()
        if not found:
            _list().rmdir()
    return found


def _list() -> Path:
    """The folder of that list, with one file per temporary folder. Raises OSError where another user owns it."""
    path = Path(tempfile.gettempdir()) / f"onnxshot-parts-{os.getuid() if hasattr(os, 'getuid') else 0}"
    path.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
    return path


def _enlist(folder: Path) -> None:
    """Add a folder to the list that `onnxshot cache clear` reads."""
    listed()  # removes entries of folders that no longer exist
    with contextlib.suppress(OSError, UnicodeError):
        (_list() / folder.name).write_text(str(folder.absolute()), encoding="utf-8")


def _let_go(folder: Path, held: list[int], owner: int) -> None:
    """Remove a folder and close its mark, the one file in `held`. It may be called again, also after an interrupt."""
    if not held or os.getpid() != owner:  # a forked child must not remove its parent's folder
        return
    with contextlib.suppress(OSError):
        finish(folder, folder / WORK)  # publishing may have been interrupted
    _remove(folder, held)
    if held:
        os.close(held.pop())


def _remove(folder: Path, held: list[int]) -> None:
    """Remove a temporary folder. The mark, open in `held`, is removed last: it shows that the rest is onnxshot's."""
    with contextlib.suppress(OSError):
        (_list() / folder.name).unlink(missing_ok=True)
        _list().rmdir()  # succeeds for the last entry
    shutil.rmtree(folder / WORK, ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != MARK:
                path.unlink()
        if held and system.WINDOWS:  # an open file cannot be removed there
            os.close(held.pop())
        (folder / MARK).unlink(missing_ok=True)
        folder.rmdir()


def _is_ours(file: int, folder: Path) -> bool:
    """Whether the mark is valid; an empty mark counts where it is the only file in the folder."""
    os.lseek(file, 0, os.SEEK_SET)
    text = os.read(file, 4096)
    if not text:
        return [path.name for path in folder.iterdir()] == [MARK]
    try:
        return bool(json.loads(text) == _CONTENT)
    except ValueError:
        return False


def _lock(file: int, path: Path) -> bool | None:
    """Lock a file: True if this process holds the lock now, False if another does, None where locks do not exist."""
    try:
        return system.lock(file) and os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
