"""Calibration cache: statistics of earlier runs by content, so that other exclusions or schemes need no inference."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

import numpy as np

from onnxshot.calibration.statistics_file import Statistics, is_statistics, load_statistics
from onnxshot.errors import OnnxshotError
from onnxshot.execution import calibration_journal, placement_cache
from onnxshot.files import cache_folder
from onnxshot.files.atomic_write import clear_dead_everywhere
from onnxshot.files.cache_folder import folder
from onnxshot.files.temporary_folders import clear as clear_part
from onnxshot.files.temporary_folders import clear_dead
from onnxshot.graph import Model
from onnxshot.graph.weight_facts import facts_of

MAX_BYTES = 256 << 20
"""Largest size of the cache folder, in bytes."""
_NAME = re.compile(r"[0-9a-f]{64}\.npz")  # a key and the suffix


def model_hash(model: Model) -> str:
    """SHA-256 of the normalized graph and its weights, in hex."""
    digest = hashlib.sha256()
    proto, lifted = model.skeleton()
    digest.update(proto.SerializeToString(deterministic=True))
    for name in sorted(lifted):
        digest.update(name.encode() + b"\0")
        # As bytes: Python has no buffer type for bfloat16 and float8.
        facts_of(lifted[name], lambda block: digest.update(np.ascontiguousarray(block).view(np.uint8).data))
    return digest.hexdigest()


def key(*parts: str) -> str:
    """Key of an entry: SHA-256 of everything its statistics depend on, in hex."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def load(name: str, place: Path | None = None) -> Statistics | None:
    """Statistics stored under this key.

    Args:
        name: The key.
        place: Folder to read instead of the cache folder.

    Returns:
        None if there are none, or if the file is damaged or of another version.
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
    """Store statistics by an atomic write. A cache that cannot be written is no error."""
    try:
        statistics.save(folder() / f"{name}.npz", lasting=False)
        _shrink()
    except (OnnxshotError, OSError):
        return


def entries() -> list[Path]:
    """The files of the cache, least recently used first. Other files in the folder are ignored."""
    return cache_folder.entries(folder(), _NAME)


def clear() -> int:
    """Remove all that is cached of runs: statistics, decisions by time, unfinished passes, folders of killed runs.

    Such folders lie in the cache, among the system's temporary files, and beside outputs.

    Returns:
        Number of bytes freed.
    """
    freed = clear_dead_everywhere()
    for place in (folder(), folder() / "remote"):
        freed += clear_dead(place)
    for part in (folder() / "batch").glob("*/.parts"):
        with contextlib.suppress(OSError):
            freed += clear_part(part)
    for path in entries():
        freed += _remove(path)
    return freed + calibration_journal.clear() + placement_cache.clear()


def _remove(path: Path) -> int:
    """Remove a file if it holds statistics; the number of bytes freed."""
    with contextlib.suppress(OSError):
        return cache_folder.remove(path) if is_statistics(path) else 0
    return 0


def _shrink() -> None:
    """Remove the least recently used statistics until the folder is within MAX_BYTES."""
    files = entries()
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if size <= MAX_BYTES:
            return
        size -= _remove(path)
