"""Read regular files of a bounded size only: a FIFO, a device or an endless file must not block a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnxshot.errors import OnnxshotError, UsageError

TEXT_BYTES = 1 << 20
"""Most bytes of a file that people write: a recipe, a preset, a manifest or a script."""
RECORD_BYTES = 16 << 20
"""Most bytes of a text file that a run writes: a record or a report. These grow with the number of nodes."""
_BLOCK = 1 << 20
_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def check_regular(path: str | Path, what: str, kind: type[OnnxshotError], most: int | None = None) -> int:
    """Check that a path is a regular file, or a link to one, without opening it.

    Args:
        path: of the file.
        what: what messages call it, such as "the recipe".
        kind: class of the error to raise.
        most: largest size allowed, in bytes; None for any size.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the file does not exist, or may not be accessed.
        OnnxshotError: an error of class `kind`: the path is a folder, a FIFO, a device or a socket, the file is too
            large, or the path contains a NUL.
    """
    return _checked(_status(path, what, kind), path, what, kind, most)


def is_special(path: str | Path) -> bool:
    """Whether a path is neither a regular file nor a folder, but a FIFO, a device or a socket."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def holds_nothing(path: Path) -> bool:
    """Whether a file is empty, or is not there. Raises OSError where that cannot be told."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def read_regular(path: str | Path, what: str, kind: type[OnnxshotError] = UsageError, most: int = TEXT_BYTES) -> bytes:
    """The bytes of a regular file. Arguments and errors are those of `check_regular`.

    The file is checked again once it is open, because another process may have replaced it. No more than `most` bytes
    are read, whatever size the system reports: it reports 0 for files in /proc.
    """
    check_regular(path, what, kind, most)
    # O_NONBLOCK: if a FIFO has replaced the file, opening it would block until somebody writes.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as file:
        _checked(os.fstat(descriptor), path, what, kind, most)
        content = b""
        while len(content) <= most and (block := file.read(min(_BLOCK, most + 1 - len(content)))):
            content += block
    if len(content) > most:
        raise _too_large(path, what, kind, most)
    return content


def _status(path: str | Path, what: str, kind: type[OnnxshotError]) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116  # raises ValueError for a path that contains a NUL
    except ValueError as e:
        raise kind(f"{what} {str(path)!r} is no path: {e}", "give the path of a file") from e


def _checked(
    found: os.stat_result, path: str | Path, what: str, kind: type[OnnxshotError], most: int | None
) -> int:
    if not stat.S_ISREG(found.st_mode):
        name = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise kind(f"{what} {path} is {name}, not a regular file", "copy what it gives to a file, and give that")
    if most is not None and found.st_size > most:
        raise _too_large(path, what, kind, most)
    return found.st_size


def _too_large(path: str | Path, what: str, kind: type[OnnxshotError], most: int) -> OnnxshotError:
    return kind(f"{what} {path} is larger than {most >> 20} MiB", "is it the right file?")

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif")
