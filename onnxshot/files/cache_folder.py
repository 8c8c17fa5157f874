"""The cache folder: statistics, copies of remote files, and parts of batches are kept in it."""

from __future__ import annotations

import os
from pathlib import Path

from onnxshot.errors import UsageError


def folder() -> Path:
    """Where statistics are kept: $ONNXSHOT_CACHE, else the user's cache folder.

    Raises UsageError where there is none.
    """
    own = os.environ.get("ONNXSHOT_CACHE")
    if own:
        return Path(own)
    if known := os.environ.get("XDG_CACHE_HOME"):
        return Path(known) / "onnxshot"
    try:
        return Path.home() / ".cache" / "onnxshot"
    except RuntimeError as e:  # HOME is not set, and the user id is in no list of users, as in many containers
        raise UsageError("there is no home folder to keep a cache in", "set ONNXSHOT_CACHE to a folder") from e


def is_there() -> bool:
    """Whether there is a place to keep statistics in; a run without one keeps none."""
    try:
        return bool(folder())
    except UsageError:
        return False
