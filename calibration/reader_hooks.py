"""Readers of files of other kinds: registered for a suffix in Python, or by a package as an entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.tensors import is_tensor
from onnxshot.calibration.text_files import TEXTS
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import PICTURES

GROUP = "onnxshot.readers"
"""The group of entry points: the name of each is a suffix, such as '.h5', and its object a reader."""

Reader = Callable[[Path], Any]
"""Reads a file: returns or yields what `calib` takes in Python, such as an array, or dicts from input name to array."""

_OURS = (*PICTURES, *SOUNDS, *TEXTS, ".npy", ".npz", ".pb", ".py", ".onnx")
_HINT = "it is called with the path, and returns or yields arrays, tuples or dicts"
_READERS: dict[str, Reader] = {}


def register_reader(suffix: str, reader: Reader) -> None:
    """Have files of a suffix read as samples by a function, in this process.

    A package that brings a reader along names it in its entry points of the group 'onnxshot.readers' instead: it then
    serves the command line too.

    Args:
        suffix: end of the names of such files, such as '.h5'; case does not matter.
        reader: called with the path of a file. It returns or yields what `calib` takes: an array of samples, or items
            such as dicts from input name to array.

    Raises:
        UsageError: the suffix does not begin with a dot, onnxshot reads it itself, or the reader cannot be called.

    Example:
        >>> onnxshot.register_reader(".bin", lambda path: np.fromfile(path, np.float32).reshape(-1, 3, 224, 224))
        >>> onnxshot.quantize("model.onnx", "samples.bin")
    """
    if not isinstance(suffix, str) or not suffix.startswith(".") or len(suffix) < 2:
        raise UsageError(f"{shown(suffix)} is no suffix", "such as '.h5'")
    if suffix.lower() in _OURS:
        raise UsageError(f"onnxshot reads {suffix} itself", "give the samples as an iterable, or use another suffix")
    if not callable(reader):
        raise UsageError(f"the reader of {suffix} is of type {type(reader).__name__}", "give a function of a path")
    _READERS[suffix.lower()] = reader


def known_suffixes() -> tuple[str, ...]:
    """The suffixes that have a reader, in lower case; no package is imported."""
    return tuple(dict.fromkeys((*_READERS, *_installed())))


def read_by_hook(path: Path) -> Any:
    """What the reader of a file returns. Raises CalibrationError where there is none, or it fails."""
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None:
        point = _installed()[suffix]
        with users_code(f"the reader of {suffix}, {point.value},"):
            reader = point.load()
    with users_code(f"the reader of {path}", _HINT):
        made = reader(path)
    if made is None:
        raise CalibrationError(f"the reader of {path} returned None", _HINT)
    return made


def items_of(paths: Sequence[Path]) -> Iterator[Any]:
    """The items of several files: a dict, an array or a tuple that a reader returns is one item."""
    for path in paths:
        made = read_by_hook(path)
        if isinstance(made, Mapping | tuple) or is_tensor(made):
            yield made
            continue
        with users_code(f"the reader of {path}", _HINT):
            stream = iter(made)
        end = object()
        while True:
            with users_code(f"the reader of {path}", _HINT):
                item = next(stream, end)
            if item is end:
                break
            yield item


def _installed() -> dict[str, EntryPoint]:
    found = {point.name.lower(): point for point in entry_points(group=GROUP)}
    return {name: point for name, point in found.items() if name.startswith(".") and name not in _OURS}
