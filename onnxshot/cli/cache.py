"""`cache show` and `cache clear`: the calibration cache."""

from __future__ import annotations

import typer

from onnxshot.cli import terminal
from onnxshot.cli.help import Command, Group
from onnxshot.cli.options import JsonOpt, tell
from onnxshot.cli.verbosity import with_verbosity

cache_app = typer.Typer(no_args_is_help=True, cls=Group, help="Show or empty the calibration cache.")


@cache_app.command("show", cls=Command)
@with_verbosity
def cache_show(as_json: JsonOpt = False) -> None:
    """Show where the calibration cache is, and how large."""
    from onnxshot.execution import statistics_cache as store
    from onnxshot.files import cache_folder

    files = store.entries()
    size = sum(path.stat().st_size for path in files)
    folder = cache_folder.folder()
    values = {"folder": str(folder), "entries": len(files), "bytes": size, "max_bytes": store.MAX_BYTES}
    entries = "1 entry" if len(files) == 1 else f"{len(files)} entries"
    text = f"{folder}: {entries}, {size / 1e6:.1f} of {store.MAX_BYTES / 1e6:.0f} MB"
    tell(as_json, values, lambda: terminal.show_text(text))


@cache_app.command("clear", cls=Command)
@with_verbosity
def cache_clear(as_json: JsonOpt = False) -> None:
    """Remove all entries of the calibration cache."""
    from onnxshot.execution import statistics_cache as store

    freed = store.clear()
    tell(as_json, {"bytes": freed}, lambda: terminal.show_text(f"{freed / 1e6:.1f} MB removed"))
