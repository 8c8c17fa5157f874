"""`batch`: many models for many targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxshot.cli import terminal
from onnxshot.cli.options import CacheOpt, JsonOpt, SetOpt, arguments_of, tell
from onnxshot.settings import MOST_THREADS


def batch(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A YAML file.", show_default=False)],
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", help="How many cells are done at once.", min=1, max=MOST_THREADS)
    ] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray: the cells as tasks of a Ray cluster.")] = "local",
    max_memory: Annotated[
        float | None, typer.Option(metavar="MB", help="Most resident memory of all processes together.", min=1)
    ] = None,
    retries: Annotated[int, typer.Option(help="Tries more for a cell whose process died.", min=0)] = 1,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of all jobs together. Default: all.", min=1, max=MOST_THREADS)
    ] = None,
    arguments: SetOpt = None,
    cache: CacheOpt = True,
    as_json: JsonOpt = False,
) -> None:
    """Compress every model of MANIFEST for every target; what is finished is not done again.

    Exit code 0: all is fine. 3: a threshold is missed. Where a cell failed, its own code, that of the first.
    """
    from onnxshot.batch import run  # what it imports is of no use to other commands
    from onnxshot.batch.summary import level_of, line_of

    summary = run(
        manifest, workers=jobs, engine=engine, threads=threads, max_memory_mb=max_memory, retries=retries,
        use_cache=cache, arguments=arguments_of(arguments),
        told=lambda row: terminal.show_text(line_of(row), level_of(row)),
    )  # fmt: skip
    tell(as_json, summary.to_dict(), lambda: terminal.show_text(summary.to_text()))
    raise typer.Exit(summary.exit_code)
