"""Statistics of arrays as calibration would gather them, and a histogram made in the plainest way."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.observers import Glimpse, Observers, glimpse
from onnxshot.calibration.stats import EMPTY, Histogram, TensorStats, width_of


def whole(x: NDArray[np.float32]) -> Glimpse:
    """A glimpse of one tensor that leaves nothing out."""
    flat = np.asarray(x, np.float32).reshape(-1)
    return replace(glimpse([x]), picks=flat, picked=np.asarray([flat.size]))


def observe(*arrays: NDArray[np.float32], subsample: bool = False, channels: bool = False) -> TensorStats:
    """Statistics of one tensor over these samples; of all values, or of a subsample as in a run."""
    observers = Observers(1)
    for x in arrays:
        observers.add(glimpse([x], [0] if channels else []) if subsample or channels else whole(x))
    return observers.stats()[0]


def histogram_of(values: NDArray[np.float32]) -> Histogram:
    """Histogram of all values at once, by numpy's own binning."""
    if values.size == 0:
        return EMPTY
    width_log2, first, last = width_of(float(values.min()), float(values.max()))
    edges = np.ldexp(np.arange(first, last + 2, dtype=np.float64), width_log2)
    counts = np.histogram(values.astype(np.float64), edges)[0]
    # The last bin of np.histogram also takes its upper edge.
    assert float(values.max()) < edges[-1]
    return Histogram(width_log2, first, counts, int((values == 0).sum()))
