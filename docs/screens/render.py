"""Make the pictures of this folder: five commands on pseudo-terminals of 80 and 120 columns, light and dark, as SVG.

`python docs/screens/render.py [NAME...]` in a clone, with the extra `dev`. Nothing is edited: what a command writes to
its terminal goes through a terminal's model, and the screen that it leaves is drawn.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
WIDTHS = (80, 120)
LINES = 40
_MODEL = "fixtures/models/digits_resnet.onnx"
_DATA = "--calib fixtures/data/digits/calib --preset fixtures/data/digits/preset.yaml"
COMMANDS = {
    "quantize": f"quantize {_MODEL} {_DATA} -o net.int8.onnx",
    "inspect": f"inspect {_MODEL}",
    "compare": f"compare {_MODEL} net.int8.onnx {_DATA}",
    "bench": f"bench {_MODEL} net.int8.onnx --seconds 1",
    "sensitivity": f"sensitivity {_MODEL} {_DATA}",
}
"""What is shown, in this order: later commands read what `quantize` has written."""

# Background, foreground, then black, red, green, yellow, blue, magenta, cyan, white.
_COLORS = {
    "light": "ffffff 1f2328 24292f a40e26 116329 7a4e00 0958c2 8250df 0f6278 57606a",
    "dark": "0d1117 e6edf3 8b949e ff7b72 56d364 e3b341 79c0ff d2a8ff 56d4dd c9d1d9",
}
THEMES = {
    kind: TerminalTheme(back, fore, eight)
    for kind, text in _COLORS.items()
    for back, fore, *eight in [[tuple(bytes.fromhex(color)) for color in text.split()]]
}
# As rich's own format, without its window and without fonts of the web.
_FORMAT = """\
<svg viewBox="0 32 WIDTH HEIGHT" width="WIDTH" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
{styles}
</style>
<defs>{lines}</defs>
<rect y="32" width="100%" height="100%" rx="8" fill="BACKGROUND"/>
<g transform="translate(8, 40)">{backgrounds}<g class="{unique_id}-matrix">
{matrix}
</g></g>
</svg>
"""


def shown(command: list[str], folder: Path, columns: int) -> list[Text]:
    """Run a command in a folder, on a terminal of so many columns. Returns the lines that stand there at its end."""
    screen = pyte.HistoryScreen(columns, LINES, history=10_000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    typed = "onnxshot " + shlex.join(command)
    stream.feed(f"$ {typed}\r\n".encode())
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxshot", *command], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**env, "TERM": "xterm-256color", "ONNXSHOT_CACHE": str(folder / ".cache")},
    )  # fmt: skip
    os.close(theirs)
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not some:
            break
        stream.feed(some)
    os.close(ours)
    if code := process.wait():
        raise SystemExit(f"{typed} ended with {code}")
    rows = [*screen.history.top, *(screen.buffer[y] for y in range(LINES))]
    lines = [_line(row, columns) for row in rows]
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _line(row: object, columns: int) -> Text:
    chars = [row[x] for x in range(columns)]  # type: ignore[index]
    line = Text(end="")
    for (color, bold, italics, reverse), run in groupby(chars, lambda c: (c.fg, c.bold, c.italics, c.reverse)):
        style = Style(color=_color(color), bold=bold, italic=italics, reverse=reverse)
        line.append("".join(char.data for char in run), style)
    line.rstrip()
    return line


def _color(name: str) -> Color | None:
    """A colour of the terminal's model as one of rich: eight names, "default", or six hexadecimal digits."""
    if name == "default":
        return None
    bright, plain = name.startswith("bright"), name.removeprefix("bright").replace("brown", "yellow")
    if plain in ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"):
        return Color.parse(f"bright_{plain}" if bright else plain)
    return Color.parse(f"#{name}")


def draw(lines: list[Text], columns: int, theme: TerminalTheme, name: str) -> str:
    """The lines as a picture."""
    console = Console(width=columns, record=True, file=io.StringIO(), color_system="truecolor", legacy_windows=False)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    sizes = {"WIDTH": 12.2 * columns + 16, "HEIGHT": 24.4 * (len(lines) + 0.5) + 16}  # of a character, and margins
    page = _FORMAT.replace("BACKGROUND", theme.background_color.hex)
    for word, size in sizes.items():
        page = page.replace(word, f"{size:.0f}")
    return console.export_svg(theme=theme, code_format=page, unique_id=name)


def main() -> None:
    """Draw the commands that are named, or all."""
    parser = argparse.ArgumentParser(description="Draw what commands show on a terminal.")
    parser.add_argument("names", nargs="*", help="commands to draw; the others only run. Default: all")
    parser.add_argument("--prefix", default="", help="put before the names of the files")
    given = parser.parse_args()
    if unknown := set(given.names) - set(COMMANDS):
        parser.error(f"{unknown.pop()} is none of {', '.join(COMMANDS)}")
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "fixtures").symlink_to(ROOT / "fixtures")
        for name, command in COMMANDS.items():
            for columns in WIDTHS:
                lines = shown(shlex.split(command), Path(place), columns)
                for kind, theme in THEMES.items():
                    if not given.names or name in given.names:
                        path = FOLDER / f"{given.prefix}{name}-{columns}-{kind}.svg"
                        path.write_text(draw(lines, columns, theme, f"{name}{columns}"), "utf-8")


if __name__ == "__main__":
    main()
