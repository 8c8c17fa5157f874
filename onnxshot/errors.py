"""Every mistake a user can make, one class per kind, each with its exit code and a hint."""

from __future__ import annotations

import re

# Of a relative path nothing need stand in front of it: no dot of a word before may be taken for its own.
_ASIDE = re.compile(
    r"(?<![^\s/\\'\"(=])\.(?:(?![\s'\"(=]\.)[^/\\])*?\.onnxshot-[a-z0-9_]{8}\.part[/\\](?:work[/\\])?"
)


def in_place(text: str) -> str:
    """The text, where files that are written aside have the paths that they will have: those alone people know."""
    return _ASIDE.sub("", text)


class OnnxshotError(Exception):
    """Base of all errors onnxshot raises on purpose; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        message = in_place(message)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(OnnxshotError):
    """The command or call contradicts itself, or names something that is not there."""

    exit_code = 2


class GoalMissed(OnnxshotError):
    """The work was done and written, but a goal that was asked for was not reached."""

    exit_code = 3


class ModelError(OnnxshotError):
    """The model file is not readable, not valid, or not an ONNX model."""

    exit_code = 4


class CalibrationError(OnnxshotError):
    """The calibration data does not fit the model, or holds values nothing can be learned from."""

    exit_code = 5


class TargetError(OnnxshotError):
    """The target cannot do what was asked, or its runtime is not installed."""

    exit_code = 6
