"""Show values in error messages: long ones are shortened, and secrets in URLs are removed."""

from __future__ import annotations

import reprlib

from onnxshot.files.urls import redacted

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120


def shown(value: object) -> str:
    """The repr of a value for a message; long values are shortened, and secrets in URLs are removed."""
    try:
        return _SHORT.repr(redacted(value) if isinstance(value, str) else value)
    except ValueError:  # Python refuses to format integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
