"""Show values in error messages: long ones are shortened, arrays by type and shape, without secrets of URLs."""

from __future__ import annotations

import reprlib
from typing import Any

from onnxshot.files.urls import redacted


class _Short(reprlib.Repr):
    """Shortens values; of arrays and tensors, alone and within others, it tells the type and the shape."""

    def repr1(self, x: Any, level: int) -> str:
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
        if isinstance(x, type) or dtype is None or not isinstance(shape, tuple) or not shape:
            return super().repr1(x, level)
        return f"array {dtype} [{','.join(map(str, shape))}]"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120


def shown(value: object) -> str:
    """The repr of a value for a message; long values are shortened, arrays told by type and shape, secrets removed."""
    try:
        return _SHORT.repr(redacted(value) if isinstance(value, str) else value)
    except ValueError:  # Python refuses to format integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
