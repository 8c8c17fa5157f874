"""Statistics of earlier runs, kept by content: a run with other exclusions or another scheme needs no inference."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxshot.calibration.stats import TensorStats, from_arrays, to_arrays
from onnxshot.graph import Model

MAX_BYTES = 256 << 20
_FORMAT = "1"  # raised when what the arrays mean changes


def folder() -> Path:
    """Where statistics are kept: $ONNXSHOT_CACHE, else the user's cache folder."""
    own = os.environ.get("ONNXSHOT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxshot"


def key(model: Model, data: str, *extra: str) -> str:
    """SHA-256 over the normalized graph, its weights, the data's fingerprint and what else the values depend on."""
    digest = hashlib.sha256()
    for part in (_FORMAT, data, *extra):
        digest.update(part.encode() + b"\0")
    proto, lifted = model.skeleton()
    digest.update(proto.SerializeToString(deterministic=True))
    for name in sorted(lifted):
        digest.update(name.encode() + b"\0")
        digest.update(_bytes(lifted[name]))
    return digest.hexdigest()


def _bytes(constant: object) -> memoryview:
    from onnxshot.graph import weights

    return memoryview(np.ascontiguousarray(weights.read(constant)).reshape(-1).view(np.uint8))


def load(name: str) -> dict[str, TensorStats]:
    """Statistics kept under that key; empty where there are none or the file is damaged."""
    path = folder() / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = from_arrays({k: arrays[k] for k in arrays.files})
        path.touch()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    return found


def store(name: str, stats: Mapping[str, TensorStats]) -> None:
    """Keep statistics; written aside and renamed. A cache that cannot be written is no error."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), suffix=".part", delete=False) as f:
            np.savez_compressed(f, allow_pickle=False, **to_arrays(stats))
        Path(f.name).replace(folder() / f"{name}.npz")
        _shrink()
    except OSError:
        return


def _shrink() -> None:
    """Remove the statistics that were used longest ago until the folder is within its bound."""
    files = sorted(folder().glob("*.npz"), key=lambda p: p.stat().st_mtime)
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if size <= MAX_BYTES:
            return
        size -= path.stat().st_size
        path.unlink(missing_ok=True)
