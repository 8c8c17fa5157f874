"""The entry point of the command line: the list of commands, and how errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import onnxshot
from onnxshot import blas_threads, memory
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
from onnxshot.cli.failures import INTERRUPTED, failure_of
from onnxshot.cli.help import AUTOMATE, COMPRESS, DEPLOY, THIS_MACHINE, UNDERSTAND, Command, Group
from onnxshot.cli.inspect import inspect
from onnxshot.cli.prune import prune
from onnxshot.cli.quantize import quantize
from onnxshot.cli.replay import replay
from onnxshot.cli.sensitivity import sensitivity
from onnxshot.cli.signals import Stopped, listen
from onnxshot.cli.ui import ui
from onnxshot.cli.verbosity import LevelOpt, QuietOpt, VerboseOpt, before_command, with_verbosity
from onnxshot.cli.verify import verify
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.wording import on_command_line

app = typer.Typer(
    name="onnxshot",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress exported ONNX models in one shot: no training code, no labels, with proof.",
)

_GROUPS = {
    COMPRESS: (quantize, prune, compress),
    UNDERSTAND: (inspect, sensitivity, compare, diff, bench),
    DEPLOY: (emit, verify),
    AUTOMATE: (batch, calibrate, replay),
    THIS_MACHINE: (doctor, ui),
}
_COMMANDS = tuple(command for commands in _GROUPS.values() for command in commands)
for _group, _members in _GROUPS.items():
    for _command in _members:
        app.command(cls=Command, rich_help_panel=_group)(with_verbosity(_command))
app.add_typer(cache_app, name="cache", rich_help_panel=THIS_MACHINE)


_TABLES = ("onnxshot.cli.tables", "onnxshot.delivery.overwrite_checks")
_MODULES = {
    **{name: (f"onnxshot.api.{name}", *_TABLES) for name in (command.__name__ for command in _COMMANDS)},
    "quantize": ("onnxshot.api.tune", "onnxshot.api.bundle", *_TABLES),
    "prune": ("onnxshot.api.prune", "onnxshot.api.shrink", *_TABLES),
    "compress": ("onnxshot.api.compress", "onnxshot.api.bundle", *_TABLES),
    "batch": ("onnxshot.batch.run", "onnxshot.batch.summary"),
    "bench": ("onnxshot.api.bench", "onnxshot.cli.latency_table"),
    "ui": ("onnxshot.ui.server",),
    "cache": ("onnxshot.execution.statistics_cache",),
}
"""What each command imports when it runs."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnxshot {onnxshot.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: VerboseOpt = 0,
    quiet: QuietOpt = False,
    log_level: LevelOpt = None,
) -> None:
    """Options that precede every command."""
    ctx.with_resource(on_command_line())
    before_command(verbose, quiet, log_level)


def _import_command(words: Sequence[str]) -> None:
    """Import the modules of a command while a signal still ends the process at once.

    An exception that a signal raises inside the import of a library is turned into another error, or crashes the
    process. What cannot be imported is reported by the command itself. The help of a command needs none of it.
    """
    names = [word for word in words if word in _MODULES]
    if names and not {"-h", "--help"} & set(words):
        with contextlib.suppress(ImportError):
            for module in _MODULES[names[0]]:
                importlib.import_module(module)


_ALLOCATIONS = 20_000  # between searches for cyclic garbage; Python's 700 cost a fifth of the time of large graphs


def entry() -> None:
    """Run the command and end the process at once, because unloading the runtimes would take a quarter of a second."""
    code = 1
    try:
        try:
            streams.prepare(sys.argv[1:])  # first: a file opened earlier could get the descriptor of a closed stream
        except OnnxshotError as error:
            _end(error)
        blas_threads.one_in_process()
        memory.share_heaps()
        _import_command(sys.argv[1:])
        gc.freeze()  # modules are never garbage
        gc.set_threshold(_ALLOCATIONS)
        try:
            listen()
        except KeyboardInterrupt as error:
            _end(error)
        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    os._exit(streams.close() or code)


def main() -> None:
    """Run the command. Print any error as one line on stderr, without a traceback, and exit with its code."""
    streams.hold("--json" in sys.argv[1:])
    try:
        if "" in sys.argv[1:]:  # it would be read as the path of the working folder
            raise UsageError("an argument is empty", "such as a variable of the shell that is not set")
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        streams.finish()
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:
        sys.exit(streams.BROKEN_PIPE)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich prints help, and exits with 1 here
            sys.exit(streams.BROKEN_PIPE)
        raise
    except (Exception, KeyboardInterrupt, Stopped) as error:
        _end(error)
    finally:
        streams.hold(False)


def _end(error: BaseException) -> NoReturn:
    """End the command as this error says."""
    failure = failure_of(error)
    if failure is None:  # no command was given, so the help was printed
        sys.exit(UsageError.exit_code)
    failure.end()
