"""Tables that fit the terminal: names are elided in the middle, figures stand right, narrow terminals lose columns.

On a pipe a table is as wide as its longest names, so that scripts find them whole, one row a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_GAP = 2  # between columns
_FRAME = 4
_NAME = 28  # to which names are elided before a column is left out
_LEAST_NAME = 12
_LEAST = 6  # of names and words, where all else was tried
_HEADS = (0.34, 0.5, 0.66, 0.8, 0.2)  # shares of an elided name that are its beginning, in the order of preference


@dataclass(frozen=True, slots=True)
class Field:
    """A column.

    Attributes:
        header: its header.
        figure: whether it holds figures, which stand right.
        name: whether it holds names, which may be elided in the middle.
        drop: when it is left out where the terminal is too narrow: 1 first; 0 for never.
    """

    header: str
    figure: bool = False
    name: bool = False
    drop: int = 0

    @property
    def words(self) -> bool:
        """Whether it holds words, whose end may be cut."""
        return not self.figure and not self.name


def figures(*headers: str) -> tuple[Field, ...]:
    """Columns of figures."""
    return tuple(Field(header, figure=True) for header in headers)


def elided(name: str, width: int, dots: str, share: float = _HEADS[0]) -> str:
    """A name without its middle, at most `width` wide. share: how much of what is kept is its beginning."""
    if cell_len(name) <= width:
        return name
    kept = max(width - len(dots), 2)
    head = int(kept * share)
    return f"{name[:head]}{dots}{name[len(name) - (kept - head) :]}"


def all_elided(names: Sequence[str], width: int, dots: str = "\N{HORIZONTAL ELLIPSIS}") -> list[str]:
    """The names of a column, each at most `width` wide, cut where most of them still differ."""
    ways = [[elided(name, width, dots, share) for name in names] for share in _HEADS]
    return max(ways, key=lambda found: len(set(found)))  # the first of those


def _ended(text: str, width: int, dots: str) -> str:
    """Words without their end, at most `width` wide."""
    return text if cell_len(text) <= width else text[: max(width - len(dots), 0)].rstrip() + dots


def print_table(
    console: Console, fields: Sequence[Field], rows: Sequence[Sequence[str]], styles: Sequence[str] = (),
    *, framed: bool = False,
) -> None:  # fmt: skip
    """Print a table. A column whose cells are all empty is left out; without rows, nothing is printed.

    Args:
        console: where; only on a terminal its width is a limit.
        fields: the columns.
        rows: plain text, without markup.
        styles: of each row; the style must not be the only sign of what it says.
        framed: whether a terminal shows a frame around it, if it has the room.
    """
    if not rows:
        return
    kept = [i for i in range(len(fields)) if any(row[i] for row in rows)]
    widths = {i: max(cell_len(text) for text in (fields[i].header, *(row[i] for row in rows))) for i in kept}
    if not console.is_terminal:
        for row in ([field.header for field in fields], *rows):
            console.print(_line(fields, {i: row[i] for i in kept}, widths))
        return
    whole, every = widths, kept
    if framed:
        kept, widths = _fitted(fields, every, whole, console.width - _FRAME - len(every))
        heads = all(widths[i] >= cell_len(fields[i].header) for i in kept)
        framed = heads and _total(widths) + _FRAME + len(kept) <= console.width
    if not framed:
        kept, widths = _fitted(fields, every, whole, console.width)
    dots = "..." if console.options.ascii_only else "\N{HORIZONTAL ELLIPSIS}"
    columns = [
        Column(
            fields[i].header[: widths[i]], justify="right" if fields[i].figure else "left", no_wrap=True,
            overflow="crop",
        )
        for i in kept
    ]  # fmt: skip
    table = Table(*columns, box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    if framed:
        table = Table(*columns, box=box.ROUNDED, border_style="dim")
    columns_of = {i: [row[i] for row in rows] for i in kept}
    columns_of |= {i: all_elided(columns_of[i], widths[i], dots) for i in kept if fields[i].name}
    columns_of |= {i: [_ended(text, widths[i], dots) for text in columns_of[i]] for i in kept if fields[i].words}
    lines = [{i: columns_of[i][number] for i in kept} for number in range(len(rows))]
    if _total(widths) > console.width:  # the terminal breaks the lines, and no figure is lost
        console.print(_line(fields, {i: fields[i].header for i in kept}, widths, "bold"))
        for number, line in enumerate(lines):
            console.print(_line(fields, line, widths, styles[number] if styles else ""))
        return
    for number, line in enumerate(lines):
        table.add_row(*map(Text, line.values()), style=styles[number] if styles else None)
    console.print(table)


def _line(fields: Sequence[Field], cells: Mapping[int, str], widths: Mapping[int, int], style: str = "") -> Text:
    """A row as one line, by the numbers of its columns."""
    texts = (text.rjust(widths[i]) if fields[i].figure else text.ljust(widths[i]) for i, text in cells.items())
    return Text((" " * _GAP).join(texts).rstrip(), style=style)


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * max(len(widths) - 1, 0)


def _fitted(
    fields: Sequence[Field], kept: list[int], widths: dict[int, int], room: int
) -> tuple[list[int], dict[int, int]]:
    """The columns and their widths that fit: names are elided, then columns go, then names are elided further.

    Last are words and headers cut, and names to what tells little; figures never are.
    """
    kept, whole_widths, widths = list(kept), widths, dict(widths)
    names = [i for i in kept if fields[i].name]
    for least in (_NAME, _LEAST_NAME):
        while _total(widths) > room:
            longest = max(names, key=lambda i: widths[i], default=None)
            whole = least if longest is None or least < _NAME else max(least, cell_len(fields[longest].header))
            if longest is not None and widths[longest] > whole:
                over = _total(widths) - room
                widths[longest] = max(whole, widths[longest] - over)
                continue
            going = min((i for i in kept if fields[i].drop), key=lambda i: fields[i].drop, default=None)
            if going is None:
                break
            kept.remove(going)
            del widths[going]
            names = [i for i in names if i != going]
    for cut in (lambda i: fields[i].words, lambda i: fields[i].name):
        for i in sorted(filter(cut, kept), key=lambda i: -widths[i]):
            widths[i] = max(min(widths[i], _LEAST), widths[i] - max(_total(widths) - room, 0))
    for i in names:  # a column that went may have been wider than what was missing
        widths[i] = min(whole_widths[i], widths[i] + max(room - _total(widths), 0))
    return kept, widths
