"""The three standard streams: stdout is ours alone, and a stream that is closed or breaks costs no result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, TextIO

from onnxshot.errors import UsageError

BROKEN_PIPE = 141
"""The exit code where nobody reads stdout any more: what shells make of SIGPIPE."""
_HELP = {"-h", "--help", "--version"}
_ours: TextIO | None = None


def prepare(arguments: list[str]) -> None:
    """Make the streams safe before anything else is done; arguments: of the command line.

    A file descriptor of a stream that is closed would be given to the next file that is opened, so that what a library
    prints would be written into a model. With --json, what is printed by anyone but `write`, the user's own functions
    and libraries of C included, goes to stderr.

    Raises UsageError where --json has no stdout to write to.
    """
    global _ours
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for the whole run
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if "--json" not in arguments or _HELP & set(arguments):
        return
    if 1 in closed:
        raise UsageError("--json has no stdout to write to: it is closed", "leave --json out, or redirect stdout")
    sys.stdout.flush()
    _ours = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)


def write(values: dict[str, Any]) -> None:
    r"""One line of JSON on stdout: UTF-8 whatever the locale, and bytes of file names that are not UTF-8 as \udcxx.

    Raises BrokenPipeError where nobody reads it, and UsageError where it cannot be written.
    """
    stream = _ours or sys.stdout
    try:
        stream.write(text_of(values) + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        what = f"the JSON cannot be written to stdout: {e.strerror}"
        raise UsageError(what, "redirect stdout to a place with room") from e


def text_of(values: dict[str, Any]) -> str:
    """Values as JSON that any UTF-8 stream takes: what is no character of Unicode is escaped."""
    text = json.dumps(values, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def close() -> int | None:
    """Write out what is waiting; the exit code where that fails, else None."""
    for stream in (_ours, sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            return BROKEN_PIPE
        except (OSError, ValueError):  # a full disk, or a stream that the user's code has closed
            continue
    return None


def _is_open(number: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False
