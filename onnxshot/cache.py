"""Statistics of earlier runs, kept by content: a run with other exclusions or another scheme needs no inference."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxshot.calibration.stats import TensorStats, from_arrays, to_arrays
from onnxshot.graph import Model, weights

MAX_BYTES = 256 << 20
_FORMAT = "2"  # raised when what the arrays mean changes


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
        # As bytes: the buffers of bfloat16 and 8-bit floats are of no type Python knows.
        digest.update(np.ascontiguousarray(weights.read(lifted[name])).view(np.uint8).data)
    return digest.hexdigest()


def load(name: str) -> dict[str, TensorStats]:
    """Statistics kept under that key; empty where there are none or the file is damaged."""
    path = folder() / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = from_arrays({k: arrays[k] for k in arrays.files})
        path.touch()
    except Exception:  # a damaged file raises what zipfile, zlib and numpy please; all of it is a miss
        return {}
    return found


def store(name: str, stats: Mapping[str, TensorStats]) -> None:
    """Keep statistics; written aside and renamed. A cache that cannot be written is no error."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".") as aside:
            part = Path(aside) / f"{name}.npz"
            np.savez_compressed(part, allow_pickle=False, **to_arrays(stats))
            part.replace(folder() / part.name)
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
