"""Lists of paths as samples: which files a caller names, and of which kind they are."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.text_files import TEXTS
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import PICTURES, check_regular

SUFFIXES = {"pictures": PICTURES, ".npz": (".npz",), ".npy": (".npy",), "sounds": SOUNDS}
"""Suffixes of the files in a folder of samples, by the kind of sample; texts beside them are notes."""
_KINDS = {**SUFFIXES, "texts": TEXTS}
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Listed:
    """Files of one kind.

    Attributes:
        kind: a key of SUFFIXES, or 'texts'.
        root: the folder that holds them all, at some depth.
        paths: of the files, absolute.
    """

    kind: str
    root: Path
    paths: tuple[Path, ...]


def listed_files(source: object) -> Listed | None:
    """The files that a list or tuple names; None where its items are samples themselves.

    A text may end as the name of a file does, so a str is a path only where the first file is there, or where all are
    single words with such an end.

    Raises:
        CalibrationError: a file is not there, cannot be a sample, or is of another kind than the first.
    """
    if type(source) not in (list, tuple) or not source:  # a class of the user may have no length
        return None
    items = list(source)  # type: ignore[call-overload]
    if not all(isinstance(one, str | Path) for one in items):
        return None
    texts = [one for one in items if isinstance(one, str)]
    if texts and not _is_sample(texts[0]) and not all(_kind_of(Path(one)) and not _SPACE.search(one) for one in texts):
        return None
    paths = tuple(Path(one).absolute() for one in items)
    kind = _kind_of(paths[0])
    for path in paths:
        try:
            check_regular(path, "the sample", CalibrationError)
        except OSError as e:
            raise CalibrationError(f"the sample {path} cannot be read: {e.strerror}", "list files that exist") from e
        if not kind or _kind_of(path) != kind:
            suffixes = ", ".join(suffix for known in _KINDS.values() for suffix in known)
            what = f"{path} is no file of samples" if not kind else f"{path} and {paths[0]} are samples of two kinds"
            raise CalibrationError(what, f"list files of one kind: {suffixes}; or give transform=, which reads a path")
    return Listed(kind, Path(os.path.commonpath([path.parent for path in paths])), paths)


def _kind_of(path: Path) -> str:
    return next((kind for kind, known in _KINDS.items() if path.suffix.lower() in known), "")


def _is_sample(text: str) -> bool:
    """Whether a text names a file of a kind that is read."""
    if not _kind_of(Path(text)):
        return False
    with contextlib.suppress(OSError):  # such as a name that is too long
        return Path(text).is_file()
    return False
