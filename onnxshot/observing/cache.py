"""Statistics of earlier runs, kept by content: a run with other exclusions or another scheme needs no inference."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from onnxshot.calibration.statsfile import Statistics, load_statistics
from onnxshot.errors import OnnxshotError
from onnxshot.graph import Model, weights

MAX_BYTES = 256 << 20


def folder() -> Path:
    """Where statistics are kept: $ONNXSHOT_CACHE, else the user's cache folder."""
    own = os.environ.get("ONNXSHOT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxshot"


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
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load(name: str, place: Path | None = None) -> Statistics | None:
    """Statistics kept under that key; None where there are none, or the file is damaged or of another version.

    place: a folder to look in other than the cache's own.
    """
    path = (place or folder()) / f"{name}.npz"
    try:
        found = load_statistics(path)
        if place is None:
            path.touch()
    except (OnnxshotError, OSError):
        return None
    return found


def store(name: str, statistics: Statistics) -> None:
    """Keep statistics; written aside and renamed. A cache that cannot be written is no error."""
    try:
        statistics.save(folder() / f"{name}.npz")
        _shrink()
    except (OnnxshotError, OSError):
        return


def entries() -> list[Path]:
    """The files of the cache, the one used longest ago first."""
    return sorted(folder().glob("*.npz"), key=lambda p: p.stat().st_mtime)


def clear() -> int:
    """Remove all statistics that are kept; how many bytes that were."""
    freed = 0
    for path in entries():
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def _shrink() -> None:
    """Remove the statistics that were used longest ago until the folder is within its bound."""
    files = entries()
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if size <= MAX_BYTES:
            return
        size -= path.stat().st_size
        path.unlink(missing_ok=True)
