"""The terminal: consoles, coloured lines and the progress line, all on stderr. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from onnxshot.cli.progress_line import ProgressLine
from onnxshot.progress import following

if TYPE_CHECKING:
    from onnxshot.progress import Progress as Callback

SHOWN_AFTER = 1.0
"""Seconds of work after which the progress line appears."""

MOST_NOTES = 4
"""How many notes a terminal shows."""
_REFRESHES = 4  # of the progress line in a second: its figures are seconds, and models are timed meanwhile
_LEAST_COLUMNS = 20  # of a terminal, below which text is not wrapped further

_READY = "ready"
STYLES = {_READY: "green", "caution": "yellow", "bad": "bold red"}
"""Colour of each level of a verdict."""


_quiet = False
_console: Console | None = None  # that shows the progress line


def is_quiet() -> bool:
    """Whether nothing but errors is printed."""
    return _quiet


@contextlib.contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Print nothing on any console while the block runs, if wanted."""
    global _quiet
    before, _quiet = _quiet, wanted
    try:
        yield
    finally:
        _quiet = before


def stderr_console() -> Console:
    """Return a console on stderr, which prints nothing if the command is quiet. `say` wraps lines, at words.

    While the progress line is shown it is the console of that line, which prints above it.
    """
    return _console or Console(
        stderr=True, highlight=False, soft_wrap=True, quiet=_quiet, color_system=color_system()
    )


def color_system() -> Literal["auto"] | None:
    """What a console is told of colours: with NO_COLOR, no style at all, as rich alone would keep what is bold."""
    return None if os.environ.get("NO_COLOR") else "auto"


def say(console: Console, text: str, style: str = "", indent: str = "  ") -> None:
    """Print a paragraph of plain text: wrapped at words on a terminal, each line as it is on a pipe."""
    for line in text.split("\n"):
        lines = [line]
        if console.is_terminal:
            lines = textwrap.wrap(
                line, max(console.width, _LEAST_COLUMNS), subsequent_indent=indent, break_long_words=False,
                break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True,
            ) or [""]  # fmt: skip
        for part in lines:
            console.print(Text(part, style=style))


def say_error(message: str, hint: str) -> None:
    """Print what is wrong and, in lines of its own, what to do about it; also if the command is quiet."""
    console = stderr_console()
    console.quiet = False
    say(console, f"error: {message}", "red")
    if hint:
        say(console, f"  hint: {hint}", indent="    ")


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print notes: a terminal that is not asked for more shows a few, those that name an option before others."""
    told = list(dict.fromkeys(notes))
    all_wanted = logging.getLogger("onnxshot").isEnabledFor(logging.INFO)  # --verbose
    if console.is_terminal and len(told) > MOST_NOTES and not all_wanted:
        shown = sorted(told, key=lambda note: not _names_option(note))[:MOST_NOTES]
    else:
        shown = told
    for note in (note for note in told if note in shown):
        say(console, f"note: {note}")
    if len(told) > len(shown):
        left = len(told) - len(shown)
        say(console, f"{left} more {'note' if left == 1 else 'notes'}: --verbose, --report FILE or --json")


def _names_option(note: str) -> bool:
    """Whether a note says what to do."""
    return " --" in note or "onnxshot " in note


def show_text(text: str, level: str = "") -> None:
    """Print text without markup, in the colour of a verdict's level if one is given; a bad one also if quiet."""
    console = stderr_console()
    console.quiet = _quiet and level != "bad"
    say(console, text, STYLES.get(level, "") if level != _READY else "")


@contextlib.contextmanager
def progress(
    wanted: bool, what: str = "working", stages: Sequence[Sequence[str]] = ()
) -> Iterator[Callback | None]:
    """Show one line while the block runs, and wipe it at the end.

    The line appears after SHOWN_AFTER seconds. It names the stage, and has the time since the block began. A step that
    is reported to the callback has a count and what is left.

    Args:
        wanted: whether the line may be shown. It is shown on a terminal only, and not if the command is quiet.
        what: what the block does outside all stages.
        stages: rows of its stages, as in `onnxshot.progress.QUANTIZING`, to show how far it is; empty if not known.

    Yields:
        The callback; None where no line is shown.
    """
    global _console
    console = stderr_console()
    if not wanted or _quiet or not console.is_interactive or not sys.stderr.isatty():
        yield None
        return
    line = ProgressLine(what, stages)
    live = Live(
        line, console=console, transient=True, refresh_per_second=_REFRESHES, redirect_stdout=sys.stdout.isatty()
    )
    starting, ended = threading.Lock(), threading.Event()

    def start() -> None:
        global _console
        with starting:
            if not ended.is_set():
                _console = console
                live.start()

    timer = threading.Timer(SHOWN_AFTER, start)
    timer.daemon = True
    timer.start()
    try:
        with following(line.enter):
            yield line.show
    finally:
        ended.set()
        timer.cancel()
        with starting:
            live.stop()
            _console = None


def wipe() -> None:
    """Leave the terminal clean where the process ends at once, while the line is shown."""
    if _console is not None:
        with contextlib.suppress(OSError):
            os.write(2, b"\r\x1b[2K\x1b[?25h")  # the start of the line; no line; a cursor
