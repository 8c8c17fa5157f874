"""Links as outputs: what they lead to is written, and they stay."""

from __future__ import annotations

import os
from pathlib import Path

from onnxshot.errors import UsageError

_HINT = "name a file of your own"
_MOST_LINKS = 40  # as the system has it
_SYSTEM = ("/proc", "/sys", "/dev")
_ROOM = ("/dev/shm",)  # a file system for files, although it lies there


def follow_link(path: Path) -> Path:
    """The file that is written where this path is named: what a link leads to, there already or not; else the path.

    What belongs to an output, such as its data file, lies beside the file that this gives, with its name.

    Raises UsageError where a link leads in a circle, into a folder that is not there, or through /proc or /dev, as
    /dev/stdout does: to put a file at such a place would replace an entry of the system.
    """
    if not os.path.islink(path):  # noqa: PTH114  # that of Path raises for names that are too long
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
