"""What calibration data may be, as a type for editors and type checkers; `open_data` says what is done with each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol


class Reader(Protocol):
    """A reader of onnxruntime.quantization: `get_next` returns a dict of arrays, and None at the end."""

    def get_next(self) -> Any:
        """Return the next sample."""


class Indexed(Protocol):
    """A dataset whose items are numbered, such as those of PyTorch."""

    def __getitem__(self, index: int, /) -> Any:
        """Return an item."""

    def __len__(self) -> int:
        """Return the number of items."""


Calib = str | Path | Iterable[Any] | Reader | Indexed
"""A path, 'random', 'module:function', arrays, tensors, or anything that gives samples one by one."""
