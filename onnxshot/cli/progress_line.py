"""The one line that a terminal shows while a command runs: the stage, how far it is, and the time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from onnxshot.progress import Place, duration

_BAR, _SHARE = 20, 6  # columns of the bar: at most, and this part of the terminal's
_MARGIN = 3  # columns: the terminal writes "^C" where the line ends, and a wrapped line could not be wiped
_SECONDS_KNOWN = 2.0  # of a step, before what is left is estimated
_MINUTE, _HOUR = 60, 3600


class ProgressLine:
    """Holds the stage and the step that are being done, and renders them as one line.

    A stage that reports no steps, or whose step is finished, has a bar that only moves. Another thread may render it.

    Args:
        what: what is done outside all stages.
        stages: rows of stages, as in `onnxshot.progress.QUANTIZING`; empty if they are not known.
    """

    def __init__(self, what: str, stages: Sequence[Sequence[str]] = ()) -> None:
        self._place = Place(stages)
        self._what = self._stage = what
        self._started = time.monotonic()
        self._step: _Step | None = None

    def enter(self, stage: str | None) -> None:
        """A stage has begun, or goes on after one within it; None: no stage."""
        self._stage, self._step = stage or self._what, None
        self._place.enter(self._stage)

    def show(self, text: str, done: int, total: int) -> None:
        """Report a step, as `onnxshot.progress.Progress` says."""
        before, name = self._step, text.partition(", ")[0]
        if done >= total:
            self._step = None
        elif before is None or before.name != name or done < before.done:
            self._step = _Step(name, text, done, total)
        else:
            self._step = _Step(name, text, done, total, before.first, before.begun)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line, which is almost as wide as the terminal."""
        row = self._row(min(_BAR, options.max_width // _SHARE))
        row.width = max(options.max_width - _MARGIN, 1)
        yield row

    def _row(self, bar: int) -> Table:
        step, now = self._step, time.monotonic()
        what = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        if step is not None and ", " in step.text:  # it says itself how far it is
            row = Table.grid(Column(no_wrap=True, overflow="ellipsis"), Column(ratio=1), padding=(0, 1), expand=True)
            row.add_row(self._named(step.text), ProgressBar(step.total, step.done))
            return row
        spent = _clock(now - self._started)
        rest = (Column(no_wrap=True, overflow="crop") for _ in range(2))
        row = Table.grid(what, *rest, padding=(0, 1), expand=True)
        if step is None:
            row.add_row(self._named(self._stage), ProgressBar(None, width=bar, animation_time=now), spent)
        else:
            left = step.left(now)
            told = f"{step.done}/{step.total} {spent}" + (f", about {duration(left)} left" if left > 0 else "")
            row.add_row(self._named(step.text), ProgressBar(step.total, step.done, width=bar), told)
        return row


    def _named(self, text: str) -> Text:
        return Text(" ".join(f"{self._place} {text}".split()))


class _Step:
    """A step as it was last reported; `first` items were done when it was first seen, at `begun`."""

    def __init__(
        self, name: str, text: str, done: int, total: int, first: int | None = None, begun: float | None = None
    ) -> None:
        self.name, self.text, self.done, self.total = name, text, done, total
        self.at = time.monotonic()
        self.first = done if first is None else first
        self.begun = self.at if begun is None else begun

    def left(self, now: float) -> float:
        """Seconds that are left, or 0 where they are not known."""
        taken, new = self.at - self.begun, self.done - self.first
        return taken / new * (self.total - self.done) - (now - self.at) if new and taken > _SECONDS_KNOWN else 0.0


def _clock(seconds: float) -> str:
    """Minutes and seconds, such as "1:05", and hours where there are some."""
    minutes, rest = divmod(int(seconds), _MINUTE)
    return f"{minutes}:{rest:02}" if seconds < _HOUR else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
