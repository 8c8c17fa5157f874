"""Wall time of the stages of one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnxshot.progress import doing


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to the entry of its stage."""
    start = time.perf_counter()
    with doing(stage):
        yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
