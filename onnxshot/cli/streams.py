"""Standard streams: with --json only `write` prints on stdout, and a closed or broken stream loses no result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from onnxshot import early_signals
from onnxshot.errors import UsageError

BROKEN_PIPE = 141
"""The exit code after a broken pipe: 128 + SIGPIPE, as shells use."""
_HELP = {"-h", "--help", "--version"}
_ours: TextIO | None = None


@dataclass(slots=True)
class _Held:
    """The object that a command with --json prints when it ends, and whether one was printed."""

    values: dict[str, Any] | None = None
    written: bool = False


_held: _Held | None = None


def prepare(arguments: list[str]) -> None:
    """Make the streams safe, before anything else is done.

    The descriptor of a closed stream would be reused by the next file that is opened, and a library's output would be
    written into a model; so closed streams are replaced with the null device. With --json, all output except that of
    `write` goes to stderr, including that of C libraries and of the user's functions.

    Args:
        arguments: the arguments of the command line.

    Raises:
        UsageError: --json is given and stdout is closed.
    """
    global _ours
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for the whole run
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if "--json" not in arguments or _HELP & set(arguments):
        return
    if 1 in closed:
        raise UsageError("--json has no stdout to write to: it is closed", "omit --json, or redirect stdout")
    sys.stdout.flush()
    _ours = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    early_signals.out = _ours.fileno()
    os.dup2(2, 1)


def hold(wanted: bool) -> None:
    """With --json: keep what `tell` is given until `finish`, so that a later error goes into the same object."""
    global _held
    _held = _Held() if wanted else None


def tell(values: dict[str, Any]) -> None:
    """Print the result of a command as JSON: at its end, or at once where nothing holds it."""
    if _held is None:
        write(values)
    else:
        _held.values = values


def finish(more: dict[str, Any] | None = None) -> None:
    """Print what was held, with these values, such as the error that ended the command; as `write` does."""
    global _held
    ended, _held = _held, None
    if ended is not None and not ended.written and (values := {**(ended.values or {}), **(more or {})}):
        write(values)


def write(values: dict[str, Any]) -> None:
    r"""Write one line of JSON to stdout, in UTF-8 for any locale; bytes of names that are not UTF-8 appear as \udcxx.

    Raises:
        BrokenPipeError: nobody reads stdout.
        UsageError: it cannot be written, for example because the disk is full.
    """
    if _held is not None:
        _held.written = True
    stream = _ours or sys.stdout
    try:
        stream.write(text_of(values) + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        what = f"the JSON cannot be written to stdout: {e.strerror}"
        raise UsageError(what, "redirect stdout to a place with room") from e


def write_paths(paths: Iterable[str]) -> None:
    """Write paths to stdout, one a line, in the bytes by which the file system knows them."""
    sys.stdout.flush()
    sys.stdout.buffer.write(b"".join(os.fsencode(path) + b"\n" for path in paths))
    sys.stdout.flush()


def text_of(values: dict[str, Any]) -> str:
    """Return the values as JSON in valid UTF-8: lone surrogates are escaped."""
    text = json.dumps(values, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def close() -> int | None:
    """Flush all streams. Returns BROKEN_PIPE if nobody reads one, else None."""
    for stream in (_ours, sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            return BROKEN_PIPE
        except (OSError, ValueError):  # a full disk, or a stream that user code has closed
            continue
    return None


def _is_open(number: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False
