"""What `--help` prints: options in panels, the ones that matter first, and examples that can be copied.

An option names its panel with `rich_help_panel`. FIRST lists the options of a command that stand above all panels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from onnxshot.cli.examples import EXAMPLES, PAGES
from onnxshot.cli.terminal import color_system

MOST_USED = "Most used"
DATA, RESULT, ACCURACY, GOALS = "Data", "Result", "Accuracy", "Goals"
ZEROS, CHANNELS = "Zeros", "Channels"
RUNTIMES, TENSORRT, EXPERT, MACHINE, MESSAGES = "Runtimes", "TensorRT", "Expert", "Machine", "Messages"
PANELS = (
    MOST_USED, DATA, ZEROS, CHANNELS, RESULT, ACCURACY, GOALS, RUNTIMES, TENSORRT, EXPERT, MACHINE, MESSAGES,
)  # fmt: skip
"""The panels of options, from top to bottom."""
COMPRESS, UNDERSTAND, DEPLOY, AUTOMATE, THIS_MACHINE = (
    "Compress", "Understand", "Deploy", "Automate", "This machine",
)  # fmt: skip
GROUPS = (COMPRESS, UNDERSTAND, DEPLOY, AUTOMATE, THIS_MACHINE)
"""The panels of commands, from top to bottom."""

FIRST = {
    "quantize": (
        "calib", "preset", "output", "target", "precision", "mode", "effort", "min_sqnr", "exclude", "report",
    ),
    "prune": ("sparsity", "pattern", "calib", "preset", "output", "layer", "exclude", "report"),
    "compress": ("calib", "preset", "optim_level", "sparsity", "recipe_file", "output", "target", "effort", "report"),
}  # fmt: skip
"""The parameters that matter most, for commands with many options."""

_WIDEST = 120  # columns of text that are still easy to read
_NAMES = 27  # most columns for the names of options
_BRIEF = 2  # examples of a brief help
_STYLES = {"name": "bold cyan", "value": "cyan", "faint": "dim", "title": "bold"}


class Command(TyperCommand):
    """A command whose help stands in panels, with a column of names and one of words. `-h` prints the first panel."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console, path = _console(), ctx.command_path
        needed = [p for p in self.params if p.required]
        places = [_value(p) if _is_argument(p) else f"{p.opts[0]} {_value(p)}" for p in needed]
        _print_head(console, " ".join([path, *places, "[OPTIONS]"]), self.help)
        panels = panels_of(self, self.get_params(ctx))
        brief = "--help" not in sys.argv and "-h" in sys.argv and MOST_USED in panels
        width = max(len(_names(param)) for params in panels.values() for param in params)
        for name, params in panels.items():
            if not brief or name in ("Arguments", MOST_USED):
                console.print(_panel(name, [(_names(p), _words(p)) for p in params], min(width, _NAMES)))
        if brief:
            others = ", ".join(name for name in panels if name not in ("Arguments", MOST_USED))
            console.print(Padding(Text(f"More options ({others}): {path} --help"), (0, 1)))
        _print_examples(console, self.name or "", most=_BRIEF if brief else None)


class Group(TyperGroup):
    """A group of commands, whose help lists them by what people do."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console = _console()
        _print_head(console, f"{ctx.command_path} [OPTIONS] COMMAND", self.help)
        rows: dict[str, list[tuple[Text, Text]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            words = (command.help or "").split("\n\n")[0]
            group = getattr(command, "rich_help_panel", None)
            rows.setdefault(group if isinstance(group, str) else "Commands", []).append(
                (Text(name, style=_STYLES["name"]), Text(_first_sentence(words)))
            )
        widest = max((len(name) for found in rows.values() for name, _ in found), default=0)
        for group in sorted(rows, key=(*GROUPS, "Commands").index):
            console.print(_panel(group, rows[group], widest + 1))
        options = [(_names(p), _words(p)) for p in self.get_params(ctx) if not _hidden(p)]
        console.print(_panel("Options", options, max(len(name) for name, _ in options)))
        _print_examples(console, self.name or "")


def panels_of(command: Any, params: Iterable[Any]) -> dict[str, list[Any]]:
    """The parameters of a command by panel, in the order in which they are shown; the arguments are first."""
    first: Sequence[str] = FIRST.get(command.name or "", ())
    found: dict[str, list[Any]] = {}
    for param in params:
        if _hidden(param):
            continue
        if _is_argument(param):
            panel = "Arguments"
        else:
            panel = MOST_USED if param.name in first else getattr(param, "rich_help_panel", None) or MESSAGES
        found.setdefault(panel, []).append(param)
    if MOST_USED in found:
        found[MOST_USED].sort(key=lambda param: first.index(param.name))
    return {name: found[name] for name in ("Arguments", *PANELS) if name in found}


def _console() -> Console:
    console = Console(highlight=False, color_system=color_system())
    console.width = min(console.width, _WIDEST)
    return console


def _print_head(console: Console, usage: str, words: str | None) -> None:
    console.print()
    console.print(Text.assemble(" Usage: ", (usage, _STYLES["title"])))
    console.print(Padding(Text((words or "").replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n")), (1, 1)))


def _panel(name: str, rows: Sequence[tuple[RenderableType, RenderableType]], width: int) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=width)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*row)
    return Panel(table, title=name, title_align="left", border_style=_STYLES["faint"])


def _print_examples(console: Console, command: str, most: int | None = None) -> None:
    for words, line in EXAMPLES.get(command, ())[:most]:
        console.print()
        console.print(Text(f" # {words}", style=_STYLES["faint"]))
        console.print(Text(f" {line}"), soft_wrap=True)  # so that it can be copied
    if command in PAGES:
        console.print(Text(f"\n More: {PAGES[command]}"))
    console.print()


def _hidden(param: Any) -> bool:
    return bool(getattr(param, "hidden", False))


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _value(param: Any) -> str:
    """The placeholder of a parameter's value; empty for a flag."""
    return "" if getattr(param, "is_flag", False) or getattr(param, "count", False) else param.metavar or ""


def _names(param: Any) -> Text:
    """What a user types: the longest name first; of a flag that is on by default, the name that turns it off."""
    if _is_argument(param):
        return Text(_value(param), style=_STYLES["value"])
    on, off = sorted(param.opts, key=len, reverse=True), list(param.secondary_opts)
    shown = off if off and param.default is True else on
    text = Text(", ").join(Text(name, style=_STYLES["name"]) for name in shown)
    if off and param.default is None:
        text.append(" / ").append(", ".join(off), style=_STYLES["name"])
    return text.append(f" {_value(param)}", style=_STYLES["value"]) if _value(param) else text


def _words(param: Any) -> Text:
    """The help of a parameter, with its default where it has one."""
    text = Text(param.help or "")
    default = param.default() if callable(param.default) else param.default
    if param.required and not _is_argument(param):
        text.append(" [required]", style="red")
    elif getattr(param, "show_default", False) and isinstance(default, (str, int, float)) and _value(param):
        text.append(f" [default: {default:g}]" if isinstance(default, float) else f" [default: {default}]", "dim")
    return text


def _first_sentence(words: str) -> str:
    first, dot, _ = words.replace("\n", " ").partition(". ")
    return first + dot.strip()
