"""Write a report to a file, as JSON or as an HTML page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxshot.errors import ModelError, UsageError
from onnxshot.files.atomic_write import write_file
from onnxshot.files.conflicts import SAMPLES, Files, Read, Write
from onnxshot.files.links import named_file
from onnxshot.files.regular_files import holds_nothing
from onnxshot.graph.load import external_files
from onnxshot.report.values import to_json

_HEAD = 1 << 16  # bytes of a page up to the end of its title
_OWN = re.compile(rb'\A\s*\{\s*"schema_version":|\A<!doctype html>.*: onnxshot report</title>', re.DOTALL)


def save_report(values: Mapping[str, Any], path: str | Path) -> None:
    """Write a report atomically.

    Args:
        values: the report as plain values.
        path: the file; an HTML page if its name ends in .html or .htm, else JSON.

    Raises:
        UsageError: the file cannot be written, or is one that the report is about.
    """
    path = named_file(path)
    Files(tuple(_mentioned(values, path)), (Write(path, "the report", no_report, option=""),)).check()
    if path.suffix.lower() in (".html", ".htm"):
        from onnxshot.report.html.page import page

        text = page(values)
    else:
        text = to_json(values) + "\n"
    try:
        write_file(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except OSError as e:
        raise UsageError(f"cannot write the report to {path}: {e.strerror}", "choose another file") from e


def is_own_report(path: Path) -> bool:
    """Whether a file is a report or page that onnxshot wrote, or the JSON of one of its commands."""
    try:
        with path.open("rb") as file:
            return _OWN.search(file.read(_HEAD)) is not None
    except OSError:
        return False


def no_report(path: Path) -> str:
    """The reason not to replace an existing file by a report; empty where it is one of onnxshot, or empty."""
    return "" if is_own_report(path) or holds_nothing(path) else "it is no report of onnxshot"


def _mentioned(values: Mapping[str, Any], place: Path) -> Iterator[Read]:
    """The files that a report is about: the input, its samples, and the files written for every target.

    Args:
        values: the report as plain values.
        place: where the report goes. An existing file of another suffix than a report's might be external data of the
            input, so the input is searched for it.
    """
    given, samples = str(values.get("input")), values.get("samples")
    yield Read(Path(given), "the input")
    if isinstance(samples, Mapping) and samples.get("source"):  # in reports of sensitivity, samples is a number
        yield Read(Path(str(samples["source"])), "one of the samples", SAMPLES)
    if place.is_file() and place.suffix.lower() not in (".json", ".html", ".htm"):
        with contextlib.suppress(ModelError):
            yield from (Read(path, "external data of the input") for path in external_files(Path(given)))
    for artifact in (*values.get("outputs", ()), *values.get("stages", ())):
        if artifact.get("path"):
            path = Path(artifact["path"])
            data = (path.with_name(path.name + suffix) for suffix in (".data", "_data"))
            for file in (path, *data, path.with_suffix(".bin")):
                yield Read(file, "a file of the result")
