"""Summarize calibration data input by input, so that wrong preprocessing shows before it costs accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import is_float
from onnxshot.calibration.readers import Dataset

PIXELS = "values look like 0..255 pixels"


@dataclass(frozen=True, slots=True)
class InputSummary:
    """One input over some samples.

    Attributes:
        name: of the input.
        dtype: of its arrays.
        shape: the range of each axis, such as '1x3x48x320..640'.
        low, mean, high: over all finite values.
        flags: what looks wrong: `PIXELS`, 'constant', 'NaN', 'Inf'.
    """

    name: str
    dtype: str
    shape: str
    low: float
    mean: float
    high: float
    flags: tuple[str, ...]


def describe_inputs(dataset: Dataset, k: int = 4) -> tuple[InputSummary, ...]:
    """Summarize every input over k evenly spaced samples, which are read one at a time."""
    count = min(max(k, 1), len(dataset))
    seen: dict[str, _Seen] = {}
    for i in range(count):
        for name, x in dataset[i * len(dataset) // count].feed.items():
            seen.setdefault(name, _Seen(str(x.dtype), is_float(x.dtype))).add(x)
    return tuple(s.summary(name) for name, s in seen.items())


class _Seen:
    """Running extremes and sum of one input."""

    def __init__(self, dtype: str, floating: bool) -> None:
        self._dtype, self._floating = dtype, floating
        self._shapes: list[tuple[int, ...]] = []
        self._low, self._high, self._sum, self._count = np.inf, -np.inf, 0.0, 0
        self._integral = True
        self._odd: set[str] = set()

    def add(self, x: NDArray[Any]) -> None:
        self._shapes.append(x.shape)
        if x.dtype.kind in "OUST":
            return
        values = x.astype(np.float64).ravel()
        self._odd |= {word for word, bad in (("NaN", np.isnan(values)), ("Inf", np.isinf(values))) if bad.any()}
        values = values[np.isfinite(values)]
        if values.size:
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
            self._sum += float(values.sum())
            self._count += values.size
            self._integral = self._integral and bool((values == np.rint(values)).all())

    def summary(self, name: str) -> InputSummary:
        flags: list[str] = [word for word in ("NaN", "Inf") if word in self._odd]
        if self._floating and self._integral and self._low >= 0 and 20 < self._high <= 255:
            flags.append(PIXELS)
        if self._count and self._low == self._high:
            flags.append("constant")
        if not self._count:
            return InputSummary(name, self._dtype, _shape_range(self._shapes), np.nan, np.nan, np.nan, tuple(flags))
        mean = self._sum / self._count
        return InputSummary(name, self._dtype, _shape_range(self._shapes), self._low, mean, self._high, tuple(flags))


def _shape_range(shapes: list[tuple[int, ...]]) -> str:
    if len({len(s) for s in shapes}) != 1:
        return " or ".join("x".join(map(str, s)) for s in dict.fromkeys(shapes))
    axes = [(min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)]
    return "x".join(str(a) if a == b else f"{a}..{b}" for a, b in axes) or "scalar"
