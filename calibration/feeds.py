"""Samples of the caller's own items: a sequence that is read in place, and a stream that is kept in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshot.calibration.arrays import read_npz
from onnxshot.calibration.checks import InputSpec, Sample
from onnxshot.calibration.item_batches import BatchCount, Parts, parted, parts_of
from onnxshot.calibration.items import ItemReader
from onnxshot.calibration.sources import Source
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError
from onnxshot.files.atomic_write import scratch_kept

_MOST_STREAMED = 1 << 20  # samples of a stream that has no limit


class Items(Protocol):
    """Items by number: a list, a data set of torch or Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class Feeds(Source):
    """Samples of a sequence of items, which stays in the caller's memory and is read one item at a time.

    Args:
        label: the sequence in messages.
        items: the sequence.
        specs: inputs of the model.
        whole: whether batches stay whole where the model takes them.
        look: whether every item is looked at now, to part batches; else none is parted.
    """

    def __init__(self, label: str, items: Items, specs: tuple[InputSpec, ...], *, look: bool, whole: bool) -> None:
        self._whole = whole
        self._label, self._items, self._specs, self._read = label, items, specs, ItemReader(specs)
        self._one_at_a_time = Lock()  # samples are read in several threads, and a caller's class may not expect that
        with users_code(label):
            count = len(items)
        self._places: list[tuple[int, int | None]] = []
        batches = BatchCount()
        for index in range(count) if look else ():
            parts = batches.add(self._parts(index))
            self._places += [(index, row) for row in range(parts.count)] if parts else [(index, None)]
        self._count = len(self._places) if look else count
        self._batches = batches.notes(label)

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]  # what is dropped is known once items were read
        """How batches were parted, and what was left out of items."""
        return (*self._batches, *self._read.notes)

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        """The arrays of an item, or of its row where it is a batch."""
        item, row = self._place(index)
        feed = self._feed(item)
        parts = None if row is None else parts_of(feed, self._specs, whole=self._whole)
        return Sample(f"#{index}", feed if row is None or parts is None else parts.take(feed, row))

    def where(self, index: int) -> str:
        """The label, the number of the item, and the row in it."""
        item, row = self._place(index)
        return f"{self._label} #{item}" + (f"[{row}]" if row is not None else "")

    def _place(self, index: int) -> tuple[int, int | None]:
        return self._places[index] if self._places else (index, None)

    def _feed(self, item: int) -> dict[str, NDArray[Any]]:
        where = f"{self._label} #{item}"
        with self._one_at_a_time, users_code(where):
            held = self._items[item]
        return self._read(held, where)

    def _parts(self, item: int) -> Parts | None:
        try:
            return parts_of(self._feed(item), self._specs, whole=self._whole)
        except CalibrationError:
            return None  # it is raised when the sample is read


class Spool(Source):
    """Samples of a stream of items, which are checked as they arrive and kept in temporary files until `close`.

    Args:
        label: the stream in messages.
        stream: the items.
        specs: inputs of the model.
        fit: makes a feed fit the model; its second argument names the sample in messages.
        limit: the stream is left after this many samples; None for all.
        whole: whether batches stay whole where the model takes them.
    """

    def __init__(
        self,
        label: str,
        stream: Iterable[object],
        specs: tuple[InputSpec, ...],
        fit: Callable[[Mapping[str, ArrayLike], str], dict[str, NDArray[Any]]],
        limit: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._label, self._specs, self._count = label, specs, 0
        read, batches = ItemReader(specs), BatchCount()
        with scratch_kept() as self._folder:
            for number, item in enumerate(_items(stream, label)):
                feed = read(item, f"{label} #{number}")
                parts = batches.add(parts_of(feed, specs, whole=whole))
                for row, sample in enumerate(parted(feed, parts)):
                    where = f"{label} #{number}" + (f"[{row}]" if parts is not None else "")
                    if limit is None or self._count < limit:
                        self._keep(fit(sample, where))
                if limit is not None and self._count >= limit:
                    break
                if self._count >= _MOST_STREAMED:
                    what = f"{label} has not ended after {self._count} samples"
                    raise CalibrationError(what, "give [[samples=NUMBER]], or let it end")
        first = (f"the first {limit} samples of {label}",) if self._count == limit else ()
        self.notes = (*batches.notes(label), *first, *read.notes)

    def _keep(self, checked: Mapping[str, NDArray[Any]]) -> None:
        # by position: an input may be named 'file', which is a parameter of np.savez
        values = [np.asarray(x, str) if x.dtype.hasobject else x for x in checked.values()]
        try:
            np.savez(self._path(self._count), *values)
        except OSError as e:
            what = f"sample {self._count} of {self._label} cannot be kept in {self._folder.path}: {e.strerror}"
            raise CalibrationError(what, "set TMPDIR to a folder with more room, or give [[samples=NUMBER]]") from e
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        """Read a sample back from its temporary file."""
        arrays = read_npz(self._path(index)).values()
        # .npy knows no bfloat16 and reads it back as raw bytes
        feed = {
            spec.name: x.view(spec.dtype) if x.dtype.kind == "V" else x.astype(spec.dtype, copy=False)
            for spec, x in zip(self._specs, arrays, strict=True)
        }
        return Sample(f"#{index}", feed)

    def where(self, index: int) -> str:
        """The label and number."""
        return f"{self._label} #{index}"

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.close()

    def _path(self, index: int) -> Path:
        return self._folder.path / f"{index}.npz"


def _items(stream: Iterable[object], label: str) -> Iterable[object]:
    with users_code(label):
        iterator = iter(stream)
    end, count = object(), 0
    while True:
        with users_code(f"{label} at sample {count}"):
            item = next(iterator, end)
        if item is end:
            return
        yield item
        count += 1
