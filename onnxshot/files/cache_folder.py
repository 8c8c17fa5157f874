"""The cache folder, which holds calibration statistics, copies of remote files, and parts of batches."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from onnxshot.errors import UsageError


def folder() -> Path:
    """The path of the cache folder: $ONNXSHOT_CACHE, else `onnxshot` in the user's cache folder.

    Raises UsageError where the user has no home folder.
    """
    own = os.environ.get("ONNXSHOT_CACHE")
    if own:
        return Path(own)
    if known := os.environ.get("XDG_CACHE_HOME"):
        return Path(known) / "onnxshot"
    try:
        return Path.home() / ".cache" / "onnxshot"
    except RuntimeError as e:  # HOME is not set and the user id is unknown, as in many containers
        raise UsageError("there is no home folder to keep a cache in", "set ONNXSHOT_CACHE to a folder") from e


def is_there() -> bool:
    """Whether there is a cache folder. A run without one stores no statistics."""
    try:
        return bool(folder())
    except UsageError:
        return False


def entries(place: Path, names: re.Pattern[str]) -> list[Path]:
    """The regular files of a folder with such names, least recently used first. Others are left alone."""
    found = []
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            with contextlib.suppress(OSError):
                state = path.lstat()
                if names.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                    found.append((state.st_mtime, path))
    return [path for _, path in sorted(found)]


def remove(path: Path) -> int:
    """Remove a file. Returns the number of bytes freed; 0 if it cannot be removed."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0
