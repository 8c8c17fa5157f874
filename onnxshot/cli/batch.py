"""`batch`: compress many models for many targets from one manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxshot.cli import terminal
from onnxshot.cli.completion import one_of
from onnxshot.cli.help import MACHINE
from onnxshot.cli.options import CacheOpt, JsonOpt, SetOpt, arguments_of, tell
from onnxshot.settings import MOST_THREADS


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

    summary = run(
        manifest, workers=jobs, engine=engine, threads=threads, memory=memory, max_memory_mb=max_memory,
        retries=retries, use_cache=cache, arguments=arguments_of(arguments),
        told=lambda row: terminal.show_text(line_of(row), level_of(row)),
    )  # fmt: skip
    tell(as_json, summary.to_dict(), lambda: terminal.show_text(summary.to_text()))
    raise typer.Exit(summary.exit_code)
