"""Part a batch of the caller's data into samples: a batch of 8 is 8 samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, NamedFeed, fits

_NO_BATCH = re.compile(
    r"seq|len|time|frame|point|node|edge|token|roi|box|patch|step|audio|sample|height|width|channel|layer"
    r"|(^|_)(h|w|t|s|l|c)$|num_(?!batch)", re.IGNORECASE,
)  # fmt: skip
"""Names of leading dimensions along which one sample lies, not several."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How a feed is parted into samples.

    Attributes:
        rows: length of the batch.
        step: rows of a sample, as the model's batch size is fixed; else 1.
        axes: the axis of the batch, by input; other arrays are part of every sample.
    """

    rows: int
    step: int
    axes: Mapping[str, int]

    @property
    def count(self) -> int:
        """Number of whole samples."""
        return self.rows // self.step

    def take(self, feed: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
        """A sample: views of the arrays of the batch."""
        found = dict(feed)
        for name, axis in self.axes.items():
            cut = slice(index * self.step, (index + 1) * self.step)
            found[name] = feed[name][(*[slice(None)] * axis, cut)]
        return found


def parts_of(feed: Mapping[str, NDArray[Any]], specs: Sequence[InputSpec], *, whole: bool = False) -> Parts | None:
    """How the arrays of an item are parted along their batch axis; None where the item is one sample.

    The batch axis is the first axis of all inputs of two or more axes where it is free, or fixed to a divisor. Where
    the model names that dimension, it is the axis of this name of other inputs. Items are kept whole whose leading axis
    has a name such as 'sequence', or whose arrays differ in length there. With `whole`, only a fixed axis is parted.
    A `NamedFeed` is one sample.
    """
    if isinstance(feed, NamedFeed):
        return None
    leading = [spec for spec in specs if _leads(feed[spec.name], spec)]
    sizes = {len(feed[spec.name]) for spec in leading}
    names = {spec.shape[0] for spec in leading if spec.shape and isinstance(spec.shape[0], str)}
    fixed = {spec.shape[0] for spec in leading if spec.shape and isinstance(spec.shape[0], int)}
    if len(sizes) != 1 or len(fixed) > 1 or any(_NO_BATCH.search(name) for name in names):
        return None
    rows, step = sizes.pop(), max([*fixed, 1])
    if rows == step or (whole and not fixed):
        return None
    axes = {spec.name: 0 for spec in leading}
    for spec in specs:
        if spec.shape is None or feed[spec.name].ndim != len(spec.shape):
            if feed[spec.name].ndim:
                return None  # it lacks a batch axis, or takes any shape: nothing says which axis is the batch
            continue
        shared = [axis for axis, dim in enumerate(spec.shape) if dim in names]
        if spec.name in axes:
            if shared not in ([], [0]):
                return None
            continue
        if not shared and spec.shape and spec.shape[0] is None:
            shared = [0]
        if shared and (len(shared) > 1 or feed[spec.name].shape[shared[0]] != rows):
            return None
        if shared:
            axes[spec.name] = shared[0]
        elif not fits(feed[spec.name].shape, spec.shape):
            return None
    return Parts(rows, step, axes)


def _leads(x: NDArray[Any], spec: InputSpec) -> bool:
    """Whether the first axis of an array may be a batch."""
    if spec.shape is None or len(spec.shape) < 2 or x.ndim != len(spec.shape):
        return False
    first = spec.shape[0]
    if first is None and len(spec.shape) == 3 and spec.shape[2] in (1, 3):  # one picture: height, width, channels
        return False
    return first != len(x) if isinstance(first, int) else True


class BatchCount:
    """Counts items and the samples that they hold, for a note."""

    def __init__(self) -> None:
        self.items = self.samples = self.left = 0
        self._sizes: list[int] = []
        self._step = 1

    def add(self, parts: Parts | None) -> Parts | None:
        """Count an item, and return its parts; None where it is one sample, or where no whole batch came before."""
        if parts is not None and not self.samples and parts.rows % parts.step:
            parts = None  # an error will say what the model takes
        self.items += 1
        self.samples += 1 if parts is None else parts.count
        if parts is not None:
            self._sizes.append(parts.rows)
            self.left += parts.rows % parts.step
            self._step = parts.step
        return parts

    def notes(self, label: str) -> tuple[str, ...]:
        """Say how many samples the batches hold; nothing where every item was one sample."""
        if not self._sizes:
            return ()
        low, high = min(self._sizes), max(self._sizes)
        of = f"{high}" if low == high and len(self._sizes) == self.items else f"up to {high}"
        each = f" of {self._step}, the batch size of the model" if self._step > 1 else ""
        one = "batch" if self.items == 1 else "batches"
        notes = [f"{label} of {self.items} {one} of {of}: {self.samples} samples{each}"]
        if self.left:
            what = f"{self.left} rows of {label} were left out: they fill no batch of {self._step}"
            notes.append(what)
        return tuple(notes)


def parted(feed: Mapping[str, NDArray[Any]], parts: Parts | None) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples of an item."""
    if parts is None:
        yield dict(feed)
        return
    for index in range(parts.count):
        yield parts.take(feed, index)
