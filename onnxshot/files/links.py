"""Paths of outputs: a file is named; the file that a symbolic link points to is written, and the link is kept."""

from __future__ import annotations

import os
from pathlib import Path

from onnxshot.errors import UsageError

_HINT = "name a file of your own"
_MOST_LINKS = 40  # the limit of Linux
_SYSTEM = ("/proc", "/sys", "/dev")
_ROOM = ("/dev/shm",)  # an ordinary file system, although it lies in /dev


def names_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends in a slash, as that of a folder; a `Path` never does."""
    return os.fspath(path).endswith(tuple(filter(None, (os.sep, os.altsep))))


def named_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file to write. Raises UsageError where it ends in a slash."""
    if names_folder(path):
        raise UsageError(f"{path} is a folder", f"name the file in it, such as {path}NAME")
    return Path(path)


def follow_link(path: Path) -> Path:
    """The file that a link points to, whether it exists or not; any other path is returned unchanged.

    Files that belong to an output, such as its external data, are written beside the returned path.

    Raises:
        UsageError: the link is circular, points into a missing folder, or leads through /proc, /sys or /dev, as
            /dev/stdout does; a file there would replace an entry of the system.
    """
    if not os.path.islink(path):  # noqa: PTH114  # Path.is_symlink raises for names that are too long
        return path
    here = path
    for _ in range(_MOST_LINKS):
        here = Path(os.path.realpath(here.parent), here.name)
        if _is_of_system(here):
            raise UsageError(f"{path} is a link that leads through {here.parent}, where no files are kept", _HINT)
        if not here.is_symlink():
            break
        here = here.parent / here.readlink()
    else:
        raise UsageError(f"{path} is a link that leads in a circle", _HINT)
    if not here.parent.is_dir():
        raise UsageError(f"{path} is a link that leads to {here}, and there is no folder {here.parent}", _HINT)
    return here


def _is_of_system(path: Path) -> bool:
    return any(map(path.is_relative_to, _SYSTEM)) and not any(map(path.is_relative_to, _ROOM))
