"""Lists of paths as samples: which files a caller names, and of which kind they are."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.tables import is_table, records
from onnxshot.calibration.text_files import TEXTS
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import PICTURES, check_regular

SUFFIXES = {"pictures": PICTURES, ".npz": (".npz",), ".npy": (".npy",), "sounds": SOUNDS}
"""Suffixes of the files in a folder of samples, by the kind of sample; texts beside them are notes."""
_KINDS = {**SUFFIXES, "texts": TEXTS}
_SPACE = re.compile(r"\s")
_MOST = 10_000_000  # paths


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


def with_paths(source: Any) -> Any:
    """What a caller gave as samples; where it names files, a list of their paths.

    Files are named by a pattern such as 'pictures/*.png', a list, an array, a column, or an iterator of paths, such as
    `Path.glob` returns; by pairs of a path and a label; and by the one value of each row of a table, or of each dict,
    that is the path of a file.

    Raises:
        CalibrationError: a pattern matches no file.
    """
    if isinstance(source, str):
        return _matches(source) if glob.has_magic(source) and not Path(source).exists() else source
    if isinstance(source, Iterator):
        with users_code(f"{type(source).__name__} at sample 0"):
            begun = list(islice(source, 1))
        items: Sequence[Any] | None = begun
        source = chain(begun, source)
    else:
        items = _items(source)
        source = items if _is_column(source) and items is not None else source
    if not items or (place := _place_of_path(items[0])) is None:
        return source
    if isinstance(source, chain):
        items = list(islice(source, _MOST))
        source = items
    with contextlib.suppress(KeyError, IndexError, TypeError):
        return [one if place == () else one[place[0]] for one in items]
    return source


def _matches(pattern: str) -> list[str]:
    path = Path(pattern)
    try:
        matched = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        found = sorted(str(one) for one in islice(matched, _MOST) if one.is_file())
    except (OSError, ValueError) as e:  # such as '**' beside other letters
        raise CalibrationError(f"{pattern} cannot be matched: {e}", "give a folder, or a list of paths") from e
    if not found:
        raise CalibrationError(f"no file matches {pattern}", "give a folder, or a pattern that files match")
    return found


def _items(source: Any) -> Sequence[Any] | None:
    """The items of what may list paths; None for other objects."""
    if type(source) is tuple and len(source) > 1 and type(source[0]) in (list, tuple, np.ndarray):
        first = with_paths(source[0])  # (paths, labels)
        return first if type(first) is list and all(map(_names_file, first)) else source
    if type(source) in (list, tuple):  # a class of the user may have no length
        return source  # type: ignore[no-any-return]
    if type(source) is dict:
        return _items(next(iter(source.values()))) if len(source) == 1 else None
    if isinstance(source, np.ndarray):
        return source.tolist() if source.ndim == 1 and source.dtype.kind in "OU" else None
    with users_code(type(source).__name__):
        if is_table(source):
            return records(source, type(source).__name__)
        if _is_column(source):
            return _items(source.to_numpy())
    return None


def _is_column(source: object) -> bool:
    """Whether an object is a column of a table of pandas or polars."""
    return hasattr(source, "to_numpy") and hasattr(source, "dtype") and not is_table(source)


def _place_of_path(item: object) -> tuple[Any, ...] | None:
    """Where an item of a list holds the path of a file: () where it is one, (key,) where it holds one; else None."""
    if isinstance(item, str | Path):
        return () if _is_path(item) else None
    parts: list[tuple[Any, object]] = []
    if type(item) is dict:  # other mappings would run their code
        parts = list(item.items())
    elif isinstance(item, list | tuple):
        parts = list(enumerate(item))
    paths = [key for key, value in parts if isinstance(value, str | Path) and _is_path(value)]
    words = [key for key, value in parts if isinstance(value, str) and key not in paths]
    if len(paths) != 1:
        return None
    kind = _kind_of(Path(dict(parts)[paths[0]]))
    return None if kind == "texts" or (kind == "sounds" and words) else (paths[0],)  # words are their transcript


def _names_file(item: object) -> bool:
    return isinstance(item, str | Path) and _is_path(item)


def _is_path(item: str | Path) -> bool:
    return isinstance(item, Path) or _is_sample(item)


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
    if texts and not _is_there(texts[0]) and not all(_kind_of(Path(one)) and not _SPACE.search(one) for one in texts):
        return None
    paths = tuple(Path(one).absolute() for one in items)
    if (folder := next((path for path in paths if path.is_dir()), None)) is not None:
        raise CalibrationError(f"{folder} is a folder", "give one folder, a pattern, or a list of files")
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


def _is_there(text: str) -> bool:
    """Whether a text names a file of a kind that is read, or a folder."""
    with contextlib.suppress(OSError):
        return _is_sample(text) or Path(text).is_dir()
    return False


def _is_sample(text: str) -> bool:
    """Whether a text names a file of a kind that is read."""
    if not _kind_of(Path(text)):
        return False
    with contextlib.suppress(OSError):  # such as a name that is too long
        return Path(text).is_file()
    return False
