"""The errors that onnxshot raises on purpose, one class per kind, each with an exit code of the command line."""

from __future__ import annotations

import re

from onnxshot.wording import worded

# The path of a temporary folder. A relative path may start anywhere, so no dot of an earlier word may match.
_ASIDE = re.compile(
    r"(?<![^\s/\\'\"(=])\.(?:(?![\s'\"(=]\.)[^/\\])*?\.onnxshot-[a-z0-9_]{8}\.part[/\\](?:work[/\\])?"
)


def in_place(text: str) -> str:
    """The text with paths of temporary files replaced by the final paths, which are the ones that users know."""
    return _ASIDE.sub("", text)


class OnnxshotError(Exception):
    """Base class of all errors that onnxshot raises on purpose.

    Attributes:
        message: what is wrong, and where; tokens of `onnxshot.wording` are replaced.
        hint: what to do about it; may be empty.
        exit_code: of the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        message = worded(in_place(message))
        super().__init__(message)
        self.message = message
        self.hint = worded(hint)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(OnnxshotError):
    """The command or call contradicts itself, or names something that does not exist."""

    exit_code = 2


class GoalMissed(OnnxshotError):
    """The result was written, but it misses a goal that was asked for."""

    exit_code = 3


class ModelError(OnnxshotError):
    """The model file cannot be read, is not valid, or is not an ONNX model."""

    exit_code = 4


class CalibrationError(OnnxshotError):
    """The calibration data cannot be read, does not fit the model, or holds values that ranges cannot be taken from."""

    exit_code = 5


class TargetError(OnnxshotError):
    """The target cannot do what was asked, or its runtime is not installed."""

    exit_code = 6
