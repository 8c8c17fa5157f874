"""Ranges of input shapes in samples, for runtimes that compile for a range of shapes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from onnxshot.calibration.readers import Dataset
from onnxshot.runtimes.base import Dims, Sizes

_MOST_READ = 1024
"""Most samples read, evenly spaced: as many as a run uses by default."""


def ranges_of(inputs: Mapping[str, Dims | None], data: Dataset) -> dict[str, tuple[Sizes, Sizes, Sizes]]:
    """Smallest, usual and largest shape of each input with free dimensions; "usual" is the median of each dimension.

    Args:
        inputs: Dimensions of each input, by name.
        data: The samples.

    Returns:
        Ranges by input name. Inputs whose rank differs between samples are left out.
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
