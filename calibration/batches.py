"""Join samples into batches of a fixed size, for models whose batch size is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import Dims, Sample, fits
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sources import Source
from onnxshot.errors import CalibrationError, UsageError

MOST_COPIES = 4096
"""Most copies of one sample in a batch: more copies add no information, and take time and memory."""


def batched(data: Dataset, shapes: Mapping[str, Dims]) -> Dataset:
    """Join samples along the leading axis where inputs need it; samples that fit are left as they are.

    The last batch is filled up with the first samples. The first batch is checked at once, the others when read.

    Args:
        data: the samples.
        shapes: dimensions of the inputs that are fixed, by name.

    Returns:
        A view of the samples, one per batch.

    Raises:
        CalibrationError: a sample does not fit; the message names it.
        UsageError: as `refuse_copies`.
    """
    batches = _Batches(data, shapes)
    batches.refuse_copies(len(data))
    joined = data.joined(batches)
    joined[0]
    return joined


def refuse_copies(data: Dataset, shapes: Mapping[str, Dims], count: int) -> None:
    """Raise UsageError where a batch of these shapes would hold each of `count` samples over MOST_COPIES times."""
    _Batches(data, shapes).refuse_copies(count)


class _Batches(Source):
    """Batches of n consecutive samples, where n follows from the shape of the first sample."""

    def __init__(self, data: Dataset, shapes: Mapping[str, Dims]) -> None:
        self._data, self._shapes = data, shapes
        self.random = data.random
        self._each = max((self._times(name, data[0].feed[name]) for name in shapes), default=1)

    def _times(self, name: str, values: NDArray[Any]) -> int:
        """How many arrays of this shape make up the wanted leading axis; 1 where one fits, or none can."""
        wanted = self._shapes[name]
        if not wanted or not values.shape or fits(values.shape, wanted) or not isinstance(wanted[0], int):
            return 1
        return wanted[0] // values.shape[0] if values.shape[0] and wanted[0] % values.shape[0] == 0 else 1

    def refuse_copies(self, count: int) -> None:
        """Raise UsageError where a batch needs more than MOST_COPIES copies of each of `count` samples."""
        if self._each > MOST_COPIES * max(1, count):
            what = f"a batch of {self._each} samples takes {self._each // max(1, count)} copies of each of {count}"
            raise UsageError(what, f"give a smaller batch, or more samples: {MOST_COPIES} copies of one are the most")

    def __len__(self) -> int:
        return -(-len(self._data) // self._each)

    def load(self, index: int) -> Sample:
        """The samples of one batch, joined. Each sample is read once, even if the batch holds it several times."""
        numbers = [i % len(self._data) for i in range(index * self._each, (index + 1) * self._each)]
        read = {i: self._data[i] for i in dict.fromkeys(numbers)}
        first_sample = read[numbers[0]]
        feed = {}
        for name, first in first_sample.feed.items():
            values = first
            if name in self._shapes and self._times(name, first) > 1:
                values = _joined([read[i].feed[name] for i in numbers])
            if name in self._shapes and not fits(values.shape, self._shapes[name]):
                wanted = ",".join("?" if d is None else str(d) for d in self._shapes[name])
                found = ",".join(map(str, first.shape))
                raise CalibrationError(
                    f"input {name!r} is frozen to [{wanted}]; sample {first_sample.name!r} holds [{found}]",
                    "give samples of that shape, or of one that divides its batch size",
                )
            feed[name] = values
        return Sample(self.where(index), feed)

    def where(self, index: int) -> str:
        """The name of the first sample, and how many more the batch holds."""
        name = self._data.name(index * self._each)
        return name if self._each == 1 else f"{name} and {self._each - 1} more"


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.concatenate(parts)
    except ValueError:  # their shapes differ; the caller reports that the sample does not fit
        return parts[0]
