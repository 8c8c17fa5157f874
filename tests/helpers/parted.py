"""The samples of a run by what they are for."""

from collections.abc import Sequence
from typing import TypeVar

from onnxshot.calibration.readers import split

T = TypeVar("T")


def held_out(given: Sequence[T]) -> list[T]:
    """Those that nothing may be learned from: a quarter."""
    return [given[i] for i in split(len(given))[1]]


def others(given: Sequence[T]) -> list[T]:
    """Those that ranges and repairs may be taken from."""
    return [given[i] for i in split(len(given))[0]]
