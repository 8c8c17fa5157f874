"""`quantize FOLDER`: every ONNX file of a folder that a library loads, into such a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxshot
from onnxshot.cli import terminal
from onnxshot.errors import UsageError
from onnxshot.wording import counted

if TYPE_CHECKING:
    from onnxshot.recipes.recipe import Recipe


def quantize_folder(
    folder: Path,
    calib: str | None,
    output: Path | None,
    preset: str | None,
    recipe: Recipe,
    how: Mapping[str, Any],
    *,
    as_json: bool,
    refused: Mapping[str, object],
) -> tuple[dict[str, Any], onnxshot.FolderResult]:
    """Quantize a folder with the options of `quantize`.

    Args:
        folder: as for `onnxshot.quantize_folder`.
        calib: the same.
        output: the same.
        preset: the same.
        recipe: the same.
        how: the fields of the settings.
        as_json: whether only JSON is printed.
        refused: values of options that only work for one file, by their names.

    Returns:
        The result as plain values, and as it is.

    Raises:
        UsageError: an option in `refused` was given.
    """
    if wrong := [name for name, value in refused.items() if value]:
        raise UsageError(f"{folder} is a folder, and {wrong[0]} is for one file", "name one .onnx file of the folder")
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(**how, progress=show)
        made = onnxshot.quantize_folder(folder, calib, output=output, preset=preset, recipe=recipe, settings=settings)
    return made.to_dict(), made


def show_folder(made: onnxshot.FolderResult, report: Path | None = None) -> None:
    """Print the report of every file, and what was copied. report: where they were also written."""
    from onnxshot.cli import tables

    tables.show_reports(made.reports.values(), report)
    console = terminal.stderr_console()
    models, files = (counted(len(of), what) for of, what in ((made.reports, "model"), (made.copied, "file")))
    beside = "it" if len(made.reports) == 1 else "them"
    terminal.say(console, f"{made.folder}: {models}, {files} copied beside {beside}")
    terminal.say_notes(console, made.notes)
