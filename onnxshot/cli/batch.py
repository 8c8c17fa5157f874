"""`batch`: compress many models for many targets from one manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxshot.cli import terminal
from onnxshot.cli.completion import one_of
from onnxshot.cli.help import MACHINE
from onnxshot.cli.options import CacheOpt, JsonOpt, SetOpt, arguments_of, tell
from onnxshot.settings import MOST_THREADS

if TYPE_CHECKING:
    from onnxshot.batch.summary import Summary


def batch(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="A YAML file that lists models and targets.", show_default=False)
    ],
    jobs: Annotated[
        int,
        typer.Option(
            "-j", "--jobs", metavar="N", rich_help_panel=MACHINE, min=1, max=MOST_THREADS,
            help="How many cells (a model for a target) run at once.",
        ),
    ] = 1,
    engine: Annotated[str, typer.Option(
        metavar="NAME", rich_help_panel=MACHINE, autocompletion=one_of(("local", "ray")),
        help="local, or ray: cells are tasks of a Ray cluster.",
    )] = "local",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", rich_help_panel=MACHINE, help="Memory of all jobs together, such as 16G; each gets a share."
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            metavar="MB", rich_help_panel=MACHINE, help="Limit of the resident memory of all processes.", min=1
        ),
    ] = None,
    retries: Annotated[int, typer.Option(
        metavar="N", rich_help_panel=MACHINE, help="How often a cell is run again if its process died.", min=0
    )] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=MACHINE, help="CPU threads of all jobs together. Default: all.", min=1,
            max=MOST_THREADS,
        ),
    ] = None,
    arguments: SetOpt = None,
    cache: CacheOpt = True,
    as_json: JsonOpt = False,
) -> None:
    """Compress many models for many targets.

    Cells that an earlier run finished are skipped.

    Exit code: 0 if every cell passed, 3 if one misses a threshold, else the code of the first cell that failed.
    """
    from onnxshot.batch import run  # imported here because other commands do not need it
    from onnxshot.batch.summary import level_of, line_of

    with terminal.progress(not as_json, "running cells"):
        summary = run(
            manifest, workers=jobs, engine=engine, threads=threads, memory=memory, max_memory_mb=max_memory,
            retries=retries, use_cache=cache, arguments=arguments_of(arguments),
            told=lambda row: terminal.show_text(line_of(row), level_of(row)),
        )  # fmt: skip
    tell(as_json, summary.to_dict(), lambda: _show(summary))
    raise typer.Exit(summary.exit_code)


_CELLS = 40  # rows of the table


def _show(summary: Summary) -> None:
    """Print the number of cells by how they ended; on a terminal also a table of them, those that failed first."""
    from onnxshot.batch.summary import level_of
    from onnxshot.cli.fitted_table import Field, figures, print_table
    from onnxshot.report.advice import BAD, CAUTION, READY

    console = terminal.stderr_console()
    if console.is_terminal:
        places = [BAD, CAUTION, READY]
        rows = sorted(summary.rows, key=lambda row: places.index(level_of(row)))
        fields = (
            Field("model", name=True), Field("target", drop=3), *figures("MB"), Field("int8 MACs", figure=True, drop=2),
            Field("SQNR dB", figure=True), Field("speed", figure=True, drop=1), Field("verdict"),
        )  # fmt: skip
        styles = [terminal.STYLES[level_of(row)] if level_of(row) != READY else "" for row in rows[:_CELLS]]
        print_table(console, fields, [_cells_of(row) for row in rows[:_CELLS]], styles, framed=True)
        if len(rows) > _CELLS:
            terminal.say(console, f"{len(rows) - _CELLS} more cells: --json, or summary.json in the output")
    terminal.show_text(summary.to_text())


def _cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A cell of the batch as a row."""
    from onnxshot.batch.summary import FAILED, MISSED, level_of
    from onnxshot.report.verdict import WORDS

    if row["verdict"] == FAILED:
        return (row["name"], row["target"], "", "", "", "", "failed")
    share, db, size = row["int8_macs_share"], row["sqnr_db"], sum(output["bytes"] for output in row["outputs"])
    verdict = "misses a threshold" if row["verdict"] == MISSED else WORDS[level_of(row)]
    return (
        row["name"], row["target"], f"{size / 1e6:.2f}", "" if share is None else f"{100 * share:.0f} %",
        "" if db is None else f"{db:.1f}", f"{row['latency']['speedup']:.2f}x" if row["latency"] else "", verdict,
    )  # fmt: skip
