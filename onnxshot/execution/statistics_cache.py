"""Statistics of earlier runs, kept by content: a run with other exclusions or another scheme needs no inference."""

from __future__ import annotations

import contextlib
import hashlib
import re
import stat
from pathlib import Path

import numpy as np

from onnxshot.calibration.statistics_file import Statistics, is_statistics, load_statistics
from onnxshot.errors import OnnxshotError
from onnxshot.files.atomic_write import clear_dead_everywhere
from onnxshot.files.cache_folder import folder
from onnxshot.files.temporary_folders import clear as clear_part
from onnxshot.files.temporary_folders import clear_dead
from onnxshot.graph import Model, weights

MAX_BYTES = 256 << 20
_NAME = re.compile(r"[0-9a-f]{64}\.npz")  # as `key` gives it


def model_hash(model: Model) -> str:
    """SHA-256, hex, of the normalized graph and its weights."""
    digest = hashlib.sha256()
    proto, lifted = model.skeleton()
    digest.update(proto.SerializeToString(deterministic=True))
    for name in sorted(lifted):
        digest.update(name.encode() + b"\0")
        # As bytes: the buffers of bfloat16 and 8-bit floats are of no type Python knows.
        digest.update(np.ascontiguousarray(weights.read(lifted[name])).view(np.uint8).data)
    return digest.hexdigest()


def key(*parts: str) -> str:
    """Name of an entry: SHA-256, hex, of all that its statistics depend on."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def load(name: str, place: Path | None = None) -> Statistics | None:
    """Statistics kept under that key; None where there are none, or the file is damaged or of another version.

    place: a folder to look in other than the cache's own.
    """
    try:
        path = (place or folder()) / f"{name}.npz"
        if place is None:
            clear_dead(path.parent)
        found = load_statistics(path)
        if place is None:
            path.touch()
    except (OnnxshotError, OSError):
        return None
    return found


def store(name: str, statistics: Statistics) -> None:
    """Keep statistics; written aside and renamed. A cache that cannot be written is no error."""
    try:
        statistics.save(folder() / f"{name}.npz", lasting=False)
        _shrink()
    except (OnnxshotError, OSError):
        return


def entries() -> list[Path]:
    """The files of the cache, the one used longest ago first; what else lies in the folder is somebody's."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder().glob("*.npz"):
            with contextlib.suppress(OSError):
                state = path.lstat()
                if _NAME.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                    found.append((state.st_mtime, path))
    return [path for _, path in sorted(found)]


def clear() -> int:
    """Remove all statistics that are kept, and what killed runs have left; how many bytes that were.

    A run that was killed leaves folders in the cache, among the system's temporary files, and beside its output.
    """
    freed = clear_dead_everywhere()
    for place in (folder(), folder() / "remote"):
        freed += clear_dead(place)
    for part in (folder() / "batch").glob("*/.parts"):
        with contextlib.suppress(OSError):
            freed += clear_part(part)
    for path in entries():
        freed += _remove(path)
    return freed


def _remove(path: Path) -> int:
    """Remove an entry that is one, whatever its name; how many bytes it had."""
    with contextlib.suppress(OSError):
        if is_statistics(path):
            size = path.stat().st_size
            path.unlink()
            return size
    return 0


def _shrink() -> None:
    """Remove the statistics that were used longest ago until the folder is within its bound."""
    files = entries()
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if size <= MAX_BYTES:
            return
        size -= _remove(path)
