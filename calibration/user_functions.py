"""Find and call functions that the user names, for samples and for scores. No other code is run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import onnxshot.errors
from onnxshot.errors import CalibrationError, OnnxshotError
from onnxshot.files.regular_files import TEXT_BYTES, check_regular

_LONGEST = 400  # characters of an error of the user
_SPELLED = re.compile(r"(?P<place>.+):(?P<function>[A-Za-z_]\w*)", re.DOTALL)
_OURS = tuple(f"{Path(file).parent}/" for file in (onnxshot.errors.__file__, __file__))
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib"))
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def named(text: str) -> tuple[str, str] | None:
    """Parse 'module:function' or 'file.py:function' into (module or file, function); None for any other text."""
    match = _SPELLED.fullmatch(text)
    return (match["place"], match["function"]) if match else None


@contextlib.contextmanager
def users_code(
    where: str, hint: str = "", kind: type[OnnxshotError] = CalibrationError, *, wrap: bool = False
) -> Iterator[None]:
    """Run the user's code in this block, and turn what it raises into an error that names the file and line.

    SystemExit, GeneratorExit and KeyboardInterrupt count as errors where the code itself raises them. What a signal
    handler raises, such as that of Ctrl-C, is passed on unchanged.

    The user's code has a working folder of its own: if it changes the folder, it finds itself there at its next call,
    and the run, whose paths may be relative, stays where it was.

    Args:
        where: what messages call the code.
        hint: how to correct it.
        kind: class of the error to raise.
        wrap: whether errors of onnxshot are wrapped too, because the code calls it; else they are passed on.
    """
    signals = _Signals()
    try:
        with signals, _FOLDERS:
            yield
    except BaseException as error:  # sys.exit() in the user's code must not end the run as if it had succeeded
        if isinstance(error, OnnxshotError) and not wrap:
            raise
        if signals.raised is not None:
            raise signals.raised from None
        raise kind(f"{where} raised {described(error)}", hint) from error


class _Folders:
    """The working folders of the run and of the user's code; switches between the two."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._ours: str | None = None
        self._theirs: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:  # nested, or in several threads
                return
            self._ours = _here()
            _go(self._theirs)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside or self._ours is None:
                return
            here = _here()
            self._theirs = here if here != self._ours else None
            if self._theirs is not None:
                _go(self._ours)

    def home(self) -> None:
        """Change to the run's folder while the block goes on."""
        _go(self._ours)


_FOLDERS = _Folders()


def _here() -> str | None:
    with contextlib.suppress(OSError):  # it was removed
        return str(Path.cwd())
    return None


def _go(folder: str | None) -> None:
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


class _Signals:
    """Records what signal handlers raise while the block runs: `raised`, or None."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._installed: dict[int, tuple[Any, Any]] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python runs signal handlers in the main thread only
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if callable(before):
                noting = self._noting(before)
                self._installed[number] = (before, noting)
                signal.signal(number, noting)

    def __exit__(self, *_: object) -> None:
        for number, (before, noting) in self._installed.items():
            if signal.getsignal(number) is noting:  # else the user's code has installed its own
                signal.signal(number, before)

    def _noting(self, before: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def note(number: int, frame: FrameType | None) -> None:
            try:
                before(number, frame)
            except BaseException as error:
                self.raised = error
                raise

        return note


def described(error: BaseException) -> str:
    """An error of the user's code as text: its type, its message, and the file and line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."  # it may hold an array
    place = _place(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{f', at {place}' if place else ''}"


def _place(error: BaseException) -> str:
    """'file:line' of the innermost frame in the user's own code; else of the innermost frame outside of onnxshot."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    frames = [(file, line) for file, line in frames if not file.startswith((*_OURS, "<"))]
    own = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return "{}:{}".format(*(own or frames)[-1]) if frames else ""


def load(place: str, function: str) -> Callable[..., Any]:
    """Import a function of a module or of a .py file. Raises CalibrationError where that fails."""
    hint = "name it as module:function or file.py:function"
    try:
        with users_code(place, hint, _NotImported):
            _FOLDERS.home()  # `place` is relative to the run's folder
            module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
            made: object = getattr(module, function, None)
    except _NotImported as error:
        assert error.__cause__ is not None
        raise CalibrationError(f"{place} cannot be imported: {described(error.__cause__)}", hint) from error
    if not callable(made):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = f"it has: {', '.join(names)}" if names else "it has no functions"
        raise CalibrationError(f"{place} has no function {function!r}", hint)
    return made


class _NotImported(CalibrationError):
    """The user's module raised an error while it was imported."""


def call(place: str, function: str) -> object:
    """Call a function of a module or of a .py file without arguments, and return its result."""
    made = load(place, function)
    with users_code(f"{place}:{function}", "it is called without arguments and returns or yields dicts"):
        return made()


def _load_file(path: Path) -> ModuleType:
    try:
        check_regular(path, "the script", CalibrationError, TEXT_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there") from None
    spec = importlib.util.spec_from_file_location(f"onnxshot_calib_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does; a console script would not find the user's module otherwise
    try:
        return importlib.import_module(name)
    finally:
        with contextlib.suppress(ValueError):  # the module itself may have removed it
            sys.path.remove(here)
