"""`verify`: check that a bundle is intact and still gives its recorded outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import JsonOpt, MemoryOpt, ThreadsOpt, tell
from onnxshot.errors import GoalMissed
from onnxshot.wording import counted

if TYPE_CHECKING:
    from onnxshot.api.verify import Verified


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --bundle made.", show_default=False)],
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Check the files of a bundle, and run its samples.

    Files are checked by their hashes, artifacts by the outputs that were recorded.
    """
    with terminal.progress(not as_json, "checking"):
        found = onnxshot.verify(folder, threads=threads, memory=memory)
    tell(as_json, found.to_dict(), lambda: _show(found))
    if found.deviations:
        first = found.deviations[0]
        what = "values differ" if first.sqnr_db is None else f"{first.sqnr_db:.1f} dB, below {first.least_db:.1f}"
        raise GoalMissed(
            f"{folder} is intact, but {first.artifact} gives other values in output {first.output!r}: {what}",
            "the version of its runtime or the CPU may differ: manifest.json names those it was made with",
        )


def _show(found: Verified) -> None:
    console = terminal.stderr_console()
    console.print(f"{counted(found.files, 'file')} intact, {counted(found.samples, 'sample')}")
    for row in found.outputs:
        db = "" if row.sqnr_db is None or row.equal == 1.0 else f", {row.sqnr_db:.1f} dB (at least {row.least_db:.1f})"
        verdict = "ok" if row.passed else "deviates"
        console.print(escape(f"{row.artifact}: {row.output}: {100 * row.equal:.2f} % of values equal{db}: {verdict}"))
    for name, reason in found.not_run.items():
        console.print(escape(f"{name}: not run: {reason}"))
    for name in found.not_listed:
        console.print(escape(f"{name}: not in the manifest, so it was not checked"))
