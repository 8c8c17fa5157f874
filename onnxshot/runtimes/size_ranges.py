"""Which sizes the free dimensions of inputs have in samples, for runtimes that compile for a range of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from onnxshot.calibration.readers import Dataset
from onnxshot.runtimes.base import Dims, Sizes

_MOST_READ = 1024
"""Samples that are read, evenly spaced: as many as a run looks at where nobody says how many."""


def ranges_of(inputs: Mapping[str, Dims | None], data: Dataset) -> dict[str, tuple[Sizes, Sizes, Sizes]]:
    """Least, usual and largest sizes of every input that has free ones; usual is the median of each dimension.

    inputs: dimensions by name. An input is left out whose samples differ in rank.
    """
    free = [name for name, dims in inputs.items() if any(not isinstance(size, int) for size in dims or ())]
    if not free or not len(data):
        return {}
    count = min(len(data), _MOST_READ)
    feeds = (data[i * len(data) // count].feed for i in range(count))
    seen = [{name: feed[name].shape for name in free} for feed in feeds]
    found = {}
    for name in free:
        shapes = [sizes[name] for sizes in seen]
        if len({len(shape) for shape in shapes}) == 1:
            columns = list(zip(*shapes, strict=True))
            usual = tuple(statistics.median_high(column) for column in columns)
            found[name] = (tuple(map(min, columns)), usual, tuple(map(max, columns)))
    return found
