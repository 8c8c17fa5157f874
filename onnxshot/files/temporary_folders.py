"""Folders of our own for what is half made: marked, locked while their maker lives, and removed once it is dead."""

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

from onnxshot.files.interrupted_writes import NOTE, finish

MARK = "onnxshot-part.json"
"""The file that makes a folder ours. The process that the folder belongs to holds a lock on it."""

WORK = "work"
_CONTENT = {"format": "onnxshot part", "version": 1}
_NAME = re.compile(r"(?:\..*\.)?onnxshot-[a-z0-9_]{8}(?:\.part)?")
_TRIES = 20
_LONGEST_STEM = 40  # of the file that is made, in the name of the folder beside it


class Part:
    """A folder to make something in. `path` is empty at first; all of it goes with `close`.

    Raises OSError where it cannot be made.
    """

    def __init__(self, parent: Path, stem: str = "") -> None:
        """A new folder: hidden, with `stem` in its name, where there is one."""
        beside = {"prefix": f".{stem[:_LONGEST_STEM]}.onnxshot-", "suffix": ".part"}
        for _ in range(_TRIES):
            folder = Path(tempfile.mkdtemp(dir=parent, **beside if stem else {"prefix": "onnxshot-"}))
            # Another run may take it for that of a dead one until it is marked.
            with contextlib.suppress(FileNotFoundError):
                if self._take(folder):
                    if stem:
                        _enlist(folder)
                    return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    @classmethod
    def at(cls, folder: Path) -> Part | None:
        """A folder of a given name, what a dead run has left there removed; None where a process that lives has it.

        Raises FileExistsError where something is there that is not ours.
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
        """Mark and lock the folder; whether it is ours now."""
        file = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            if _lock(file, folder / MARK) is False:
                os.close(file)
                return False
            if os.fstat(file).st_size and not _is_ours(file, folder):
                raise FileExistsError(errno.EEXIST, "it is there, and onnxshot has not made it", str(folder))
        except OSError:
            os.close(file)
            raise
        self._finalizer = weakref.finalize(self, _let_go, folder, file, os.getpid())
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
        """Remove the folder; what cannot be removed stays for the next run."""
        self._finalizer()


def clear_dead(parent: Path) -> int:
    """Remove the folders of `Part` in a folder whose makers are dead; how many bytes that were.

    What such a run had begun to put at its place is finished, or taken back.
    """
    freed = 0
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        found = [Path(e.path) for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in found:
            with contextlib.suppress(OSError):
                freed += clear(folder)
    return freed


def clear(folder: Path) -> int:
    """Remove one such folder where its maker is dead, and nothing that is not ours; how many bytes that were."""
    try:
        file = os.open(folder / MARK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        folder.rmdir()  # its maker died before it was marked; or it is somebody's, and is not empty
        return 0
    try:
        mine = not hasattr(os, "geteuid") or os.fstat(file).st_uid == os.geteuid()
        if not mine or _lock(file, folder / MARK) is not True or not _is_ours(file, folder):
            return 0
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        finish(folder, folder / WORK)
        _remove(folder)
        return size
    finally:
        os.close(file)


def is_inside(path: Path) -> bool:
    """Whether a path lies in such a folder."""
    return any((folder / MARK).exists() for folder in path.parents)


def listed() -> list[Path]:
    """The folders beside outputs that were made on this machine and are not gone yet, as far as that is known."""
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
    """A folder of this user alone with a file for each of them. Raises OSError where it is another's."""
    path = Path(tempfile.gettempdir()) / f"onnxshot-parts-{os.getuid() if hasattr(os, 'getuid') else 0}"
    path.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
    return path


def _enlist(folder: Path) -> None:
    """Note where the folder is, for `onnxshot cache clear`. The next run beside it finds it without."""
    listed()  # drops those that are gone
    with contextlib.suppress(OSError, UnicodeError):
        (_list() / folder.name).write_text(str(folder.absolute()), encoding="utf-8")


def _let_go(folder: Path, file: int, owner: int) -> None:
    if os.getpid() != owner:  # that of a fork of it
        return
    if os.name == "nt":  # an open file cannot be removed there
        os.close(file)
    with contextlib.suppress(OSError):
        finish(folder, folder / WORK)  # where the work was interrupted while it was put in place
    _remove(folder)
    if os.name != "nt":
        os.close(file)


def _remove(folder: Path) -> None:
    """The mark goes last: without it nobody would know whose the rest is."""
    with contextlib.suppress(OSError):
        (_list() / folder.name).unlink(missing_ok=True)
        _list().rmdir()  # where it was the last one
    shutil.rmtree(folder / WORK, ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != MARK:
                path.unlink()
        (folder / MARK).unlink()
        folder.rmdir()


def _is_ours(file: int, folder: Path) -> bool:
    """Whether the mark is whole; one that was never written stands in a folder that is empty but for it."""
    os.lseek(file, 0, os.SEEK_SET)
    text = os.read(file, 4096)
    if not text:
        return [path.name for path in folder.iterdir()] == [MARK]
    try:
        return bool(json.loads(text) == _CONTENT)
    except ValueError:
        return False


def _lock(file: int, path: Path) -> bool | None:
    """Lock a file that is still at its path; False where another process holds it, None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows: what a dead run leaves stays there
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks
        return None
