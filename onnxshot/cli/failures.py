"""How a command fails: a message on stderr, an exit code and, with --json, one object on stdout."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from onnxshot.cli import streams
from onnxshot.cli.signals import Stopped, received
from onnxshot.errors import OnnxshotError, UsageError, in_place
from onnxshot.wording import OWNERS, counted, on_command_line, option

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells use. Typer returns it."""
_NAMED = re.compile(r"Invalid value for '([^']+)': (.*)")
_OF_CLICK = re.compile(
    r"'?(?P<value>.*?)'? is not (?:a valid (?P<kind>integer|float)(?: range)?|in the range (?P<range>.*))"
)
_WANTED = {
    **dict.fromkeys(("int_parsing", "integer"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float"), "a number"),
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "{ge:g} or above", "less_than": "a number below {lt:g}", "less_than_equal": "at most {le:g}",
}  # fmt: skip
"""What an option takes, by the type of pydantic's error, or by the name of its type in click's."""
_EXTRA = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", re.DOTALL)
_FIELD = re.compile(r"([a-z][a-z_]*)(?=[ .\[])")
_NO_OPTION = ("stages",)  # keys of recipes that no option stands for
_BEGUN = 5  # characters that two options begin with, dashes included, where one may be meant for the other
_NEAR = 0.75  # likeness of two names, above which one may be meant for the other


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command ended.

    Attributes:
        code: the exit code.
        kind: the class of the error in `onnxshot.errors`; else 'Interrupted', 'Stopped' or 'InternalError'.
        message: what is wrong, and where.
        hint: what to do about it; may be empty.
    """

    code: int
    kind: str
    message: str
    hint: str = ""

    @property
    def line(self) -> str:
        """The failure in one line."""
        return _printable(f"{self.message} ({self.hint})" if self.hint else self.message)

    def _print(self) -> None:
        """Print the failure: on a terminal wrapped, with the hint in lines of its own; else in one line."""
        if not sys.stderr.isatty():
            line = f"error: {self.line}"
            coloured = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR")
            sys.stderr.write(f"\x1b[31m{line}\x1b[0m\n" if coloured else f"{line}\n")
            return
        from onnxshot.cli.terminal import say_error

        say_error(_printable(self.message), _printable(self.hint))

    def end(self) -> NoReturn:
        """Print the failure and end the command with its exit code."""
        with contextlib.suppress(OSError, ValueError):  # stderr is closed or full: only the exit code remains
            self._print()
        from onnxshot.report.values import stamped

        texts = {"message": _printable(self.message), "hint": _printable(self.hint)}
        with contextlib.suppress(OSError, ValueError, UsageError):
            streams.finish(stamped({"error": {**asdict(self), **texts}}))
        sys.exit(self.code)


def failure_of(error: BaseException) -> Failure | None:
    """The failure that an exception is; None for a usage error without a text, after which help was printed.

    A signal counts as the cause of any error after it, as an import may have made another error of it.

    Raises:
        BaseException: the error itself, where ONNXSHOT_DEBUG asks for a traceback.
    """
    number = received()
    if isinstance(error, KeyboardInterrupt) or number == signal.SIGINT:
        return Failure(INTERRUPTED, "Interrupted", f"interrupted; nothing is half written{_kept()}")
    if isinstance(error, Stopped) or number is not None:
        stopped = error if isinstance(error, Stopped) else Stopped(number or signal.SIGTERM)
        return Failure(stopped.exit_code, "Stopped", str(stopped))
    if isinstance(error, OnnxshotError):
        public = next(kind for kind in type(error).__mro__ if kind.__module__ == OnnxshotError.__module__)
        return Failure(error.exit_code, public.__name__, _by_option(error), error.hint)
    if hasattr(error, "format_message"):  # a usage error of Typer, which has no public class for it
        return _mistyped(error)
    if os.environ.get("ONNXSHOT_DEBUG"):
        raise error
    return _from_python(error)


def _by_option(error: OnnxshotError) -> str:
    """The message of an error; where it begins with the key of a recipe or a field, with the option by which it came.

    A key in a file has the name of the file in front of it.
    """
    named = _FIELD.match(error.message)
    if named is None or not isinstance(error, UsageError) or named[1] in _NO_OPTION:
        return error.message
    from onnxshot.recipes.keys import BadKey, spelled

    if not isinstance(error, BadKey) and named[1] not in OWNERS:
        return error.message
    with on_command_line():
        message = option(named[1]) + error.message[named.end(1) :]
        if isinstance(error, BadKey) and error.other:
            end = spelled(error.other)
            first = str(error.other[0])
            message = message.removesuffix(end) + option(first) + end.removeprefix(first)
    return message


def _mistyped(error: Any) -> Failure | None:
    """A usage error of Typer; None if it has no text. The hint names what may be meant, or the command that has it."""
    context, asked = getattr(error, "ctx", None), getattr(error, "option_name", None)
    text = error.format_message()
    what, _, meant = text.partition(" Did you mean ")
    what = what.removesuffix(".")
    if (named := _NAMED.match(what)) and (found := _bad_value(error, named[2])):
        return _usage(f"{named[1]} is {found[0]!r}", found[1])
    if extra := _EXTRA.match(text):
        words = extra[1].split(" ")
        what = f"{counted(len(words), 'argument')} more than it takes, the first is {words[0]!r}"
        quotes = "a pattern such as '*.png' stands in quotes; " if len(words) > 1 and Path(words[0]).exists() else ""
        return _usage(what, f"{quotes}{getattr(context, 'command_path', 'onnxshot')} --help lists the options")
    commands = getattr(context.find_root().command, "commands", {}) if context is not None else {}
    of_commands = context is None or hasattr(context.command, "commands")
    if what.startswith("No such command") and (instead := _in_place_of_command(sys.argv[1:], commands)):
        return _usage(what, instead)
    if asked and hasattr(error, "possibilities"):
        what = f"there is no option {asked}"
        if files := [word for word in sys.argv[1:] if word.startswith(asked) and Path(word).exists()]:
            return _usage(what, f"a file whose name begins with a dash is given as ./{files[0]}")
        near = _nearest(asked, [option for param in context.command.params for option in param.opts] if context else ())
        meant = f"{near}?" if near else ""
    meant = f"did you mean {meant} " if meant else ""
    owners = [name for name, command in commands.items() if any(asked in param.opts for param in command.params)]
    if asked and not meant and owners:
        meant = f"onnxshot {owners[0]} has it; "
    path = getattr(context, "command_path", "onnxshot")
    if context is None and asked and len(sys.argv) > 1:  # an option without its value
        path, of_commands = f"onnxshot {sys.argv[1]}", False
    return _usage(what, f"{meant}{path} --help lists the {'commands' if of_commands else 'options'}") if text else None


def _in_place_of_command(words: Sequence[str], commands: Mapping[str, object]) -> str:
    """What to type where the first word is no command, but says what is wanted; empty where it does not."""
    first, *others = [word for word in words if not word.startswith("-")] or [""]
    if first == "help":
        named = [word for word in others if word in commands][:1]
        return f"type {' '.join(['onnxshot', *named, '--help'])}"
    if first == "version":
        return "type onnxshot --version"
    if first.lower().endswith(".onnx") or (first not in commands and Path(first).exists()):
        name = shlex.quote(first)
        return f"a command comes first: onnxshot quantize {name} --calib DATA, or onnxshot inspect {name}"
    return ""


def _nearest(given: str, options: Sequence[str]) -> str:
    """The option that was most likely meant: a similar one, or one that begins alike; empty where there is none."""
    close = get_close_matches(given, options, n=1, cutoff=_NEAR)
    begun = [one for one in options if len(one) >= _BEGUN and (given.startswith(one) or one.startswith(given))]
    return (close or begun or [""])[0]


def _bad_value(error: Any, said: str) -> tuple[str, str] | None:
    """The value of an option that Typer could not read, and what the option takes; None where it does not say.

    Typer reads values with pydantic, and its older versions with click, which names the value in its text.
    """
    read = getattr(error.__cause__ or error.__context__, "errors", None)
    if callable(read):
        fault = read()[0]
        return str(fault["input"]), _WANTED.get(fault["type"], str(fault["msg"])).format(**fault.get("ctx", {}))
    if found := _OF_CLICK.fullmatch(said):
        return found["value"], found["range"] or _WANTED[found["kind"]]
    return None


def _from_python(error: BaseException) -> Failure:
    """An error that Python raises: of the system, or a fault of onnxshot."""
    if isinstance(error, OSError):  # such as a full disk or a missing permission
        place = f"{in_place(str(error.filename))}: " if error.filename is not None else ""
        return _usage(f"{place}{error.strerror or error}")
    if isinstance(error, UnicodeEncodeError):  # such as a sample's name, which a zip archive cannot hold
        name = error.object[max(0, error.start - 40) : error.end + 40]
        return _usage(f"{name!r} is not UTF-8 and cannot be written", "rename it")
    if isinstance(error, MemoryError):
        return _usage("there is not enough memory", "try fewer threads, or a smaller batch")
    return Failure(1, "InternalError", f"internal error: {type(error).__name__}: {error}; ONNXSHOT_DEBUG=1 shows where")


def _usage(message: str, hint: str = "") -> Failure:
    return Failure(UsageError.exit_code, UsageError.__name__, message, hint)


def _kept() -> str:
    """What an interrupted command leaves for the next run, as the end of a sentence."""
    journal = sys.modules.get("onnxshot.execution.calibration_journal")  # else nothing was calibrated
    return ", and the next run goes on with what was calibrated" if journal is not None and journal.goes_on() else ""


def _printable(message: str) -> str:
    r"""Return a message as one line without control characters; bytes that are not UTF-8 appear as \udcxx."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else f"\\u{ord(c):04x}" for c in message)
    return " ".join(line.split())
