"""Samples joined into batches of a fixed size, for models that take no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import Dims, Sample, fits
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sources import Source
from onnxshot.errors import CalibrationError


def batched(data: Dataset, shapes: Mapping[str, Dims]) -> Dataset:
    """The samples as inputs of these shapes want them: as they are, or several joined along the leading axis.

    shapes: of the inputs that are fixed. The last batch is filled up with the first samples. Raises CalibrationError
    where a sample does not fit, naming it; where the first one does not, at once.
    """
    joined = data.joined(_Batches(data, shapes))
    joined[0]
    return joined


class _Batches(Source):
    """Sample i is samples i * n to (i + 1) * n - 1 of a data set, n being what the first one asks for."""

    def __init__(self, data: Dataset, shapes: Mapping[str, Dims]) -> None:
        self._data, self._shapes = data, shapes
        self.random = data.random
        self._each = max((self._times(name, data[0].feed[name]) for name in shapes), default=1)

    def _times(self, name: str, values: NDArray[Any]) -> int:
        """How many such arrays make the leading axis that is wanted; 1 where they fit, or cannot."""
        wanted = self._shapes[name]
        if not wanted or not values.shape or fits(values.shape, wanted) or not isinstance(wanted[0], int):
            return 1
        return wanted[0] // values.shape[0] if values.shape[0] and wanted[0] % values.shape[0] == 0 else 1

    def __len__(self) -> int:
        return -(-len(self._data) // self._each)

    def load(self, index: int) -> Sample:
        """The samples of one batch, joined."""
        numbers = [i % len(self._data) for i in range(index * self._each, (index + 1) * self._each)]
        samples = [self._data[i] for i in numbers]
        feed = {}
        for name, first in samples[0].feed.items():
            values = first
            if name in self._shapes and self._times(name, first) > 1:
                values = _joined([s.feed[name] for s in samples])
            if name in self._shapes and not fits(values.shape, self._shapes[name]):
                wanted = ",".join("?" if d is None else str(d) for d in self._shapes[name])
                found = ",".join(map(str, first.shape))
                raise CalibrationError(
                    f"input {name!r} is frozen to [{wanted}]; sample {samples[0].name!r} holds [{found}]",
                    "give samples of that shape, or such that several make a batch",
                )
            feed[name] = values
        return Sample(self.where(index), feed)

    def where(self, index: int) -> str:
        """The names of the first sample, and how many there are."""
        name = self._data.name(index * self._each)
        return name if self._each == 1 else f"{name} and {self._each - 1} more"


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.concatenate(parts)
    except ValueError:  # of different lengths: told as a sample that does not fit
        return parts[0]
