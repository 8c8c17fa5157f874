"""How much a command tells: --verbose, --quiet and --log-level, before or after the name of the command."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from onnxshot.cli import terminal
from onnxshot.cli.completion import one_of
from onnxshot.cli.help import MESSAGES
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.wording import with_samples

LEVELS = ("debug", "info", "warning", "error")
VerboseOpt = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, rich_help_panel=MESSAGES, show_default=False,
        help="Log stages and their seconds to stderr. Twice: also their starts.",
    ),
]  # fmt: skip
QuietOpt = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", rich_help_panel=MESSAGES, help="Print errors only, and the path of the result."
    ),
]  # fmt: skip
LevelOpt = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL", rich_help_panel=MESSAGES, autocompletion=one_of(LEVELS),
        help="Log to stderr from this level on: debug, info, warning, error.",
    ),
]  # fmt: skip
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "verbose": (VerboseOpt, 0), "quiet": (QuietOpt, False), "log_level": (LevelOpt, None),
}  # fmt: skip
_OF_SAMPLES = ("calib", "preset", "tokenizer", "length")
_before: dict[str, Any] = {}
"""What was given before the name of the command."""


def before_command(verbose: int, quiet: bool, log_level: str | None) -> None:
    """Keep the options that stand before the name of the command, for the command."""
    _before.update(verbose=verbose, quiet=quiet, log_level=log_level)


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, and follow them while it runs."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) or _before.get(name) for name in _OPTIONS}
        samples = {name: values.get(name) for name in _OF_SAMPLES} if values.get("calib") is not None else {}
        with _following(**given), with_samples(samples):
            command(**values)

    signature = inspect.signature(command, eval_str=True)  # Typer evaluates no annotation of `__signature__`
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **{name: kind for name, (kind, _) in _OPTIONS.items()}}
    return run


@contextmanager
def _following(verbose: int | None, quiet: bool | None, log_level: str | None) -> Iterator[None]:
    """Print as the options say, while the block runs. Raises UsageError where they contradict each other."""
    if verbose and quiet:
        raise UsageError("--verbose and --quiet contradict each other", "give one of them")
    if log_level is not None and log_level.lower() not in LEVELS:
        raise UsageError(f"--log-level is {shown(log_level)}", f"one of {', '.join(LEVELS)}")
    level = log_level.upper() if log_level else "DEBUG" if (verbose or 0) > 1 else "INFO" if verbose else None
    package, handler = logging.getLogger("onnxshot"), _Stderr(all_notes=bool(quiet))
    old = package.level
    if level is not None:
        package.addHandler(handler)
        package.setLevel(level)
    try:
        with terminal.quiet(bool(quiet)):
            yield
    finally:
        package.removeHandler(handler)
        package.setLevel(old)


class _Stderr(logging.Handler):
    """Prints lines such as "[  1.2 s] calibrate: 0.80 s" on stderr, above a progress bar that is there.

    Notes and verdicts are left out where the command prints them itself.
    """

    def __init__(self, *, all_notes: bool) -> None:
        super().__init__()
        self._all_notes, self._started = all_notes, time.time()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line of a record."""
        if not self._all_notes and record.name == "onnxshot.notes":
            return
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"[{max(record.created - self._started, 0):5.1f} s] {level}{record.getMessage()}\n"
        try:
            sys.stderr.write(line)  # looked up each time: a bar replaces it
            sys.stderr.flush()
        except (OSError, ValueError):  # closed, or full
            return
