"""Print to the terminal: consoles, coloured lines, and a progress bar. All on stderr. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
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
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from onnxshot.settings import Progress as Callback

SHOWN_AFTER = 1.0
"""Seconds of work after which a bar appears."""


_READY = "ready"
STYLES = {_READY: "green", "caution": "yellow", "bad": "bold red"}
"""Colours by the level of a verdict."""


def stderr_console() -> Console:
    """Where tables go: stderr, with lines of any length."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_text(text: str, level: str = "") -> None:
    """Print lines as they are, in the colour of a verdict's level where one is given."""
    stderr_console().print(escape(text), style=STYLES.get(level) if level != _READY else None)


class _Rate(ProgressColumn):
    """Steps per second; empty until two steps were seen, which is all that rich can tell a rate from."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


@contextlib.contextmanager
def progress(wanted: bool) -> Iterator[Callback | None]:
    """A bar for work that lasts longer than SHOWN_AFTER seconds, on a terminal; None elsewhere."""
    console = stderr_console()
    if not wanted or not console.is_terminal:
        yield None
        return
    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    columns = (what, BarColumn(20), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, expand=True)
    tasks: dict[str, TaskID] = {}
    started = time.monotonic()

    def show(step: str, done: int, total: int) -> None:
        if time.monotonic() - started < SHOWN_AFTER:
            return
        if step not in tasks:
            bar.start()
            tasks[step] = bar.add_task(step, total=total)
        bar.update(tasks[step], completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


def name_column(header: str) -> Column:
    """A column of names and paths: what differs may be at their end, so they are wrapped, never cut."""
    return Column(header, overflow="fold")
