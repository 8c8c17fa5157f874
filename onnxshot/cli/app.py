"""The command line: parses, calls the Python API, prints. Exit codes are those of errors.py."""

from __future__ import annotations

from onnxshot.cli import early_signals  # noqa: F401  # isort: skip  # before what takes its time

import contextlib
import os
import sys
from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import streams
from onnxshot.cli.batch import batch
from onnxshot.cli.bench import bench
from onnxshot.cli.cache import cache_app
from onnxshot.cli.calibrate import calibrate
from onnxshot.cli.compare import compare
from onnxshot.cli.compress import compress
from onnxshot.cli.diff import diff
from onnxshot.cli.doctor import doctor
from onnxshot.cli.emit import emit
from onnxshot.cli.inspect import inspect
from onnxshot.cli.prune import prune
from onnxshot.cli.quantize import quantize
from onnxshot.cli.replay import replay
from onnxshot.cli.sensitivity import sensitivity
from onnxshot.cli.signals import Stopped, listen
from onnxshot.cli.ui import ui
from onnxshot.cli.verify import verify
from onnxshot.errors import OnnxshotError, UsageError, in_place

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress exported ONNX models in one shot: no training code, no labels, with proof.",
)

_INTERRUPTED = 130  # what the parser makes of Ctrl-C, and what shells use

_COMMANDS = (
    quantize, prune, compress, calibrate, inspect, sensitivity, compare, diff, bench, emit, replay, batch, verify,
    doctor, ui,
)  # fmt: skip
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(cache_app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"onnxshot {onnxshot.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


def entry() -> None:
    """Run the command and leave at once: to unload the runtimes takes a quarter of a second that nobody needs."""
    code = 1
    try:
        try:
            streams.prepare(sys.argv[1:])  # first: whatever opens a file might be given the number of a closed stream
        except OnnxshotError as error:
            _fail(str(error), error.exit_code)
        listen()
        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    os._exit(streams.close() or code)


def main() -> None:
    """Every error is one line on stderr and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except OnnxshotError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(streams.BROKEN_PIPE)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # help is printed by rich, which makes a 1 of it
            sys.exit(streams.BROKEN_PIPE)
        raise
    except KeyboardInterrupt:
        _fail("interrupted; nothing is half written", _INTERRUPTED)
    except Stopped as stopped:
        _fail(str(stopped), stopped.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command-line parser, which names no public class
            text = error.format_message()
            if not text:  # no command was given: the help was printed
                sys.exit(2)
            _fail(f"{text} (onnxshot COMMAND --help lists the options)", 2)
        if os.environ.get("ONNXSHOT_DEBUG"):
            raise
        if isinstance(error, OSError):  # a full disk, a folder without permission: no fault of the program
            place = f"{in_place(str(error.filename))}: " if error.filename is not None else ""
            _fail(f"{place}{error.strerror or error}", UsageError.exit_code)
        if isinstance(error, UnicodeEncodeError):  # such as the name of a sample in a bundle, which is a zip archive
            name = error.object[max(0, error.start - 40) : error.end + 40]
            _fail(f"{name!r} is not UTF-8, and cannot be written there (rename it)", UsageError.exit_code)
        if isinstance(error, MemoryError):
            _fail("there is not memory enough (fewer threads, or a smaller batch, take less)", UsageError.exit_code)
        _fail(f"internal error: {type(error).__name__}: {error}; ONNXSHOT_DEBUG=1 shows where", 1)


def _printable(message: str) -> str:
    r"""A message on one line, without what would steer a terminal; bytes of names that are not UTF-8 as \udcxx."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else f"\\u{ord(c):04x}" for c in message)
    return " ".join(line.split())


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed, or full: the code says it
        sys.stderr.write(f"error: {_printable(message)}\n")
    sys.exit(code)
