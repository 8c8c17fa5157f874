"""What a caller gives as samples: with a transform, or as a stream that is read more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxshot.calibration.feeds import Items
from onnxshot.calibration.tensors import is_tensor
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError, UsageError

TAKES = (
    "[[arrays, tensors, a list of paths, texts or dicts, a DataLoader, a data set, a table; |]]"
    "a folder of pictures (with [[preset]]), of .wav or .flac, of .txt, of .npy or of .npz files; one .npz or .npy "
    "with a leading sample axis; one .wav, .flac, .txt, .jsonl or .tsv; "
    "a test_data_set folder of .pb; module:function or file.py:function; or 'random'"
)
"""The kinds of calibration data, as messages list them."""
USUAL = (
    "give [[calib]] [[arrays, a DataLoader, |]]a folder of pictures (with [[preset=imagenet]] or another), a .npz of "
    "arrays, a .txt or .wav file, or 'random' to try; docs/calibration.md has all kinds"
)
"""What most people give, for those who gave nothing."""
Transform = Callable[[Any], Any]
"""Makes what a model takes of an item: an array, a tuple in the order of the inputs, or a dict; or a batch of them."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """Samples, and the function that is called on each item of them.

    Attributes:
        data: the samples, as they were given.
        by: the function.
    """

    data: Any
    by: Transform


def with_transform(data: Any, transform: Transform | None) -> Any:
    """The samples of a run, with the function that is called on each item, if there is one.

    Raises UsageError where the transform cannot be called, or there is nothing to transform.
    """
    if transform is None:
        return data
    if not callable(transform):
        raise UsageError(f"transform is of type {type(transform).__name__}", "give a function of one item")
    if data is None or (isinstance(data, str) and data in ("", "random")):
        raise UsageError("there are no items to transform", "give samples beside transform=")
    return Transformed(data, transform)


def repeatable(data: Any) -> Any:
    """The samples, in a `Repeatable` where they are a stream: a second reading might give others, or none."""
    inner = data.data if isinstance(data, Transformed) else data
    if isinstance(inner, str | Path | Repeatable) or inner is None or is_tensor(inner) or isinstance(inner, Mapping):
        return data
    stream = callable(getattr(inner, "get_next", None)) or isinstance(inner, Iterable)
    return Repeatable(data) if stream and not is_indexed(inner) and not hasattr(inner, "columns") else data


class Repeatable:
    """A stream of samples that is read once; what was read is used again whenever it is opened.

    Attributes:
        data: the stream, as it was given.
        opened: what was made of it when it was opened first; None before.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.opened: Any = None


def label_of(source: object) -> str:
    """What messages call the samples."""
    if isinstance(source, Transformed | Repeatable):
        return label_of(source.data)
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def stream_of(source: Any) -> Iterator[Any]:
    """The items of an iterable, or of a CalibrationDataReader of onnxruntime."""
    following = getattr(source, "get_next", None)
    return iter(following, None) if callable(following) else iter(source)


def is_indexed(source: object) -> bool:
    """Whether items are read by number: a sequence, or a data set of torch or Hugging Face, but no dict and no text."""
    if isinstance(source, Sequence):
        return not isinstance(source, str | bytes)
    if isinstance(source, Mapping) or is_tensor(source) or hasattr(source, "columns"):
        return False
    return all(hasattr(type(source), name) for name in ("__len__", "__getitem__"))


class Mapped:
    """A sequence of items that a function is called on when they are read."""

    def __init__(self, items: Items, by: Transform, label: str) -> None:
        self._items, self._by, self._label = items, by, label

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return called(self._by, self._items[index], f"{self._label} #{index}")


def called(by: Transform, item: Any, where: str) -> Any:
    """What a transform makes of an item. Raises CalibrationError where it raises, or returns nothing."""
    with users_code(f"transform of {where}", "it is called with one item of the data"):
        made = by(item)
    if made is None:
        raise CalibrationError(f"transform of {where} returned None", "return an array, a tuple or a dict")
    return made
