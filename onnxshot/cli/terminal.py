"""The terminal: consoles, coloured lines and a progress bar, all on stderr. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import logging
import textwrap
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from onnxshot.progress import Progress as Callback

SHOWN_AFTER = 1.0
"""Seconds of work after which the progress bar appears."""

MOST_NOTES = 4
"""How many notes a terminal shows."""
_LEAST_COLUMNS = 20  # of a terminal, below which text is not wrapped further

_READY = "ready"
STYLES = {_READY: "green", "caution": "yellow", "bad": "bold red"}
"""Colour of each level of a verdict."""


_quiet = False


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
    """Return a console on stderr, which prints nothing if the command is quiet. `say` wraps lines, at words."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=_quiet)


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
        say(console, f"{len(told) - len(shown)} more notes: --verbose, --report FILE or --json")


def _names_option(note: str) -> bool:
    """Whether a note says what to do."""
    return " --" in note or "onnxshot " in note


def show_text(text: str, level: str = "") -> None:
    """Print text without markup, in the colour of a verdict's level if one is given; a bad one also if quiet."""
    console = stderr_console()
    console.quiet = _quiet and level != "bad"
    say(console, text, STYLES.get(level, "") if level != _READY else "")


class _Rate(ProgressColumn):
    """Steps per second; empty until rich has seen two steps."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:.0f}/s" if speed >= 100 else f"{speed:.3g}/s")


class _Bars(Progress):
    """Progress bars; a step whose description says how far it is gets a line of that and a bar."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the lines, in two tables."""
        plain = [task for task in self.tasks if not _tells_all(task)]
        if plain:
            yield self.make_tasks_table(plain)
        for task in self.tasks:
            if _tells_all(task):
                row = Table.grid(Column(no_wrap=True), Column(ratio=1), padding=(0, 1), expand=True)
                row.add_row(Text(task.description), BarColumn(None).render(task))
                yield row


def _tells_all(task: Task) -> bool:
    """Whether the description itself says how far the step is."""
    return ", " in task.description


@contextlib.contextmanager
def progress(wanted: bool) -> Iterator[Callback | None]:
    """Yield a callback that shows a progress bar after SHOWN_AFTER seconds; None unless stderr is a terminal."""
    console = stderr_console()
    if not wanted or _quiet or not console.is_terminal:
        yield None
        return
    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    columns = (what, BarColumn(20), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = _Bars(*columns, console=console, transient=True, expand=True)
    tasks: dict[str, TaskID] = {}
    started = time.monotonic()

    def show(step: str, done: int, total: int) -> None:
        if time.monotonic() - started < SHOWN_AFTER:
            return
        name = step.partition(", ")[0]
        if name not in tasks:
            bar.start()
            tasks[name] = bar.add_task(step, total=total)
        bar.update(tasks[name], completed=done, total=total, description=step)

    try:
        yield show
    finally:
        bar.stop()
