"""Texts that name options, in the words of who reads them: Python where the API was called, options on a command line.

A text holds tokens in double brackets, and `worded` replaces them:

    token                          Python                                     command line
    [[effort=best]]                effort="best"                              --effort best
    [[bits]]                       bits                                       --bits
    [[per_channel=False]]          per_channel=False                          --per-tensor
    [[search_seconds=120]]         Settings(search_seconds=120)               --search-time 120
    [[min_sqnr=15]]                Goal(min_sqnr=15)                          --min-sqnr 15
    [[compare A B calib=DATA]]     onnxshot.compare(A, B, calib=DATA)         onnxshot compare A B --calib DATA
    [[compare "a.onnx" B]]         onnxshot.compare("a.onnx", B)              onnxshot compare a.onnx B
    [[one text|another text]]      one text                                   another text

Words in capitals stand for what the reader puts in. In commands, `calib=DATA` is worded as the options by which the
running command was given its samples (`with_samples`). In Python, options of `inspect` stand in `recipe=Recipe(...)`,
and globs that are given several times in a list. Names are those of Python. Errors and findings replace tokens
themselves; other texts are given to `worded` where they are made.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator

VARIABLE = "ONNXSHOT_WORDING"
"""Environment variable of worker processes: "command" where their texts are read by who typed a command."""

OWNERS = {
    **dict.fromkeys(
        ("samples", "verify", "use_cache", "threads", "device", "memory", "seed", "keep_overridable", "requantize",
         "bench_seconds", "search_seconds", "accept"), "Settings",
    ),
    **dict.fromkeys(
        ("min_sqnr", "max_drop", "max_perplexity_rise", "max_latency", "max_size", "evaluate", "budget"), "Goal"
    ),
    **dict.fromkeys(("hardware", "half", "shapes", "minutes", "timing_cache"), "EmitOptions"),
    **dict.fromkeys(("tokenizer", "length"), "TextPreset"),
}  # fmt: skip
"""The class that has a field; options without one are arguments of functions."""

OPTIONS = {
    "search_seconds": "search-time", "evaluate": "eval", "half": "half-weights", "minutes": "build-minutes",
    "layers": "layer", "use_cache=False": "no-cache", "verify=False": "no-verify", "per_channel=False": "per-tensor",
    "asymmetric=False": "symmetric", "emit": "emit",
}  # fmt: skip
"""Options whose name on the command line is not the one in Python."""

TOKEN = re.compile(r"\[\[([a-zA-Z-][^\[\]|]*(?:\[[^\[\]]*\][^\[\]|]*)?(?:\|[^|]*?)?)\]\]")
_OPTION = re.compile(r"([a-z_]+)(?:=(.*))?", re.DOTALL)
_AS_IT_IS = re.compile(r"-?\d+(\.\d+)?|[A-Z][A-Z_]*|True|False|None")  # numbers, and what a reader puts in
_REPEATED = ("exclude", "include")
_DATA = "calib=DATA"
_command = os.environ.get(VARIABLE) == "command"
_samples = ""  # options, such as "--calib data --preset imagenet"


@contextlib.contextmanager
def on_command_line() -> Iterator[None]:
    """Word texts as options of the command line meanwhile."""
    global _command
    before, _command = _command, True
    try:
        yield
    finally:
        _command = before


@contextlib.contextmanager
def with_samples(options: dict[str, object]) -> Iterator[None]:
    """Word `calib=DATA` in commands as these options meanwhile, by their names on the command line; None: not given."""
    global _samples
    before = _samples
    _samples = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    try:
        yield
    finally:
        _samples = before


def is_command_line() -> bool:
    """Whether texts are worded as options of the command line."""
    return _command


def environment() -> dict[str, str]:
    """The variables that let a worker process word its texts as this process does."""
    return {VARIABLE: "command"} if _command else {}


def worded(text: str) -> str:
    """The text with its tokens replaced."""
    return TOKEN.sub(lambda found: _worded(found[1]), text) if "[[" in text else text


def _worded(token: str) -> str:
    if "|" in token:
        return token.split("|", 1)[_command]
    if found := _OPTION.fullmatch(token):
        return option(found[1], found[2])
    verb, *words = shlex.split(token)
    parts = [(word, _OPTION.fullmatch(word)) for word in words]
    if _command:
        said = [
            _samples if word == _DATA and _samples else option(found[1], found[2]) if found else shlex.quote(word)
            for word, found in parts
        ]
        return " ".join(("onnxshot", "quantize" if verb == "tune" else verb, *said))
    said = [_literal(word) for word, found in parts if not found]
    said += _arguments(verb, [(found[1], found[2]) for _, found in parts if found])
    return f"onnxshot.{verb}({', '.join(said)})"


def _arguments(verb: str, options: list[tuple[str, str | None]]) -> list[str]:
    """The options of a command as arguments of the function of that name."""
    globs: dict[str, list[str]] = {name: [v for n, v in options if n == name and v] for name in _REPEATED}
    lists = [f"{name}={json.dumps(found, ensure_ascii=False)}" for name, found in globs.items() if found]
    others = [(name, value) for name, value in options if name not in _REPEATED]
    if verb != "inspect":
        return [*(_python(name, value, call=True) for name, value in others), *lists]
    of_data = [_python(name, value, call=True) for name, value in others if name == "calib"]
    fields = [*(_python(name, value) for name, value in others if name != "calib"), *lists]
    return [*of_data, f"recipe=onnxshot.Recipe({', '.join(fields)})"] if fields else of_data


def counted(count: int, what: str) -> str:
    """A number of things, such as "1 note" and "3 notes"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def option(name: str, value: str | None = None) -> str:
    """An option by its Python name, with its value or alone, as the reader writes it."""
    if not _command:
        return _python(name, value)
    flag = "--" + (OPTIONS.get(f"{name}={value}") or OPTIONS.get(name) or name.replace("_", "-"))
    return flag if value in (None, "True", "False") else f"{flag} {shlex.quote(value)}"


def _python(name: str, value: str | None, *, call: bool = False) -> str:
    owner = OWNERS.get(name)
    if value is None:
        return f"{owner}.{name}" if owner else name
    if value.endswith("%"):
        value = f"{float(value[:-1]) / 100:g}"
    literal = _literal(value)
    if owner is None:
        return f"{name}={literal}"
    parameter = {"Settings": "settings", "Goal": "goal", "EmitOptions": "options", "TextPreset": "preset"}[owner]
    return f"{parameter}={owner}({name}={literal})" if call else f"{owner}({name}={literal})"


def _literal(value: str) -> str:
    return value if _AS_IT_IS.fullmatch(value) else json.dumps(value, ensure_ascii=False)
