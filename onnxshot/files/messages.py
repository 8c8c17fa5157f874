"""Values in error messages: cut where they are long, without the secrets of a URL."""

from __future__ import annotations

import reprlib

from onnxshot.files.urls import redacted

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120


def shown(value: object) -> str:
    """A value in a message, cut where it is long, without the secrets of a URL."""
    try:
        return _SHORT.repr(redacted(value) if isinstance(value, str) else value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
