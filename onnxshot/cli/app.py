"""The command line: parses, calls the Python API, prints. Exit codes are those of errors.py."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import onnxshot
from onnxshot.cli.batch import batch
from onnxshot.cli.bundle import verify
from onnxshot.cli.calibrate import cache_app, calibrate
from onnxshot.cli.diff import diff
from onnxshot.cli.doctor import doctor
from onnxshot.cli.emit import emit
from onnxshot.cli.looking import bench, compare, inspect, sensitivity
from onnxshot.cli.prune import compress, prune
from onnxshot.cli.quantize import quantize
from onnxshot.cli.replay import replay
from onnxshot.cli.stopping import Stopped, listen
from onnxshot.cli.ui import ui
from onnxshot.errors import OnnxshotError

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
        listen()
        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Every error is one line on stderr and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except OnnxshotError as error:
        _fail(str(error), error.exit_code)
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
        _fail(f"internal error: {type(error).__name__}: {error}; ONNXSHOT_DEBUG=1 shows where", 1)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(code)
