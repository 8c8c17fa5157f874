"""Write a report: as JSON, or as a page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxshot.errors import ModelError, UsageError
from onnxshot.files.atomic_write import write_file
from onnxshot.files.conflicts import SAMPLES, Files, Read, Write
from onnxshot.graph.load import external_files
from onnxshot.report.values import to_json


def save_report(values: Mapping[str, Any], path: str | Path) -> None:
    """Write a report, aside first: as a page where the name ends in .html, else as JSON.

    Raises UsageError where that cannot be done, or a file is there that the report is about.
    """
    path = Path(path)
    Files(tuple(_told_of(values, path)), (Write(path, "the report"),)).check()
    if path.suffix.lower() in (".html", ".htm"):
        from onnxshot.report.html.page import page

        text = page(values)
    else:
        text = to_json(values) + "\n"
    try:
        write_file(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except OSError as e:
        raise UsageError(f"cannot write the report to {path}: {e.strerror}", "choose another file") from e


def _told_of(values: Mapping[str, Any], place: Path) -> Iterator[Read]:
    """The files that a report tells of: the input, its samples, and what was written, of every target.

    place: where the report goes; files that no report was ever written to are looked at more closely.
    """
    given, samples = str(values.get("input")), values.get("samples")
    yield Read(Path(given), "the input")
    if isinstance(samples, Mapping) and samples.get("source"):  # of a sensitivity it is their number
        yield Read(Path(str(samples["source"])), "one of the samples", SAMPLES)
    if place.is_file() and place.suffix.lower() not in (".json", ".html", ".htm"):
        with contextlib.suppress(ModelError):
            yield from (Read(path, "external data of the input") for path in external_files(Path(given)))
    for artifact in (*values.get("outputs", ()), *values.get("stages", ())):
        if artifact.get("path"):
            path = Path(artifact["path"])
            for file in (path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")):
                yield Read(file, "a file of the result")
