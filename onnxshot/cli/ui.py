"""`ui`: serve the local web page."""

from __future__ import annotations

from typing import Annotated

import typer

import onnxshot
from onnxshot.cli import streams, terminal
from onnxshot.cli.help import MACHINE
from onnxshot.cli.options import JsonOpt, MemoryOpt
from onnxshot.errors import UsageError


def ui(
    port: Annotated[int, typer.Option(
        metavar="N", rich_help_panel=MACHINE, help="The port to listen on; 0 chooses a free one.", min=0, max=65535
    )] = 0,
    browse: Annotated[
        bool, typer.Option("--open/--no-open", rich_help_panel=MACHINE, help="Do not open the page in a browser.")
    ] = True,
    max_upload: Annotated[
        float,
        typer.Option(
            metavar="MB", rich_help_panel=MACHINE, help="Size limit of the files of a job, unpacked.", min=1
        ),
    ] = 2048.0,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Serve a page: drop a model and samples, compress.

    It is for this machine only. Read the report there, and download the result.
    """
    try:
        from onnxshot.ui.server import serve
    except ModuleNotFoundError as e:
        raise UsageError(f"the page needs {e.name}, which is not installed", "pip install 'onnxshot[ui]'") from e

    def ready(address: str) -> None:
        if as_json:
            streams.write({"url": address})
        elif terminal.is_quiet():
            streams.write_paths([address])  # nobody could use the page without it
        else:
            terminal.show_text(f"{address}\nanyone who has this address can use the page; Ctrl-C ends it")

    serve(port, int(max_upload * 1e6), ready, browse=browse, memory=onnxshot.Settings(memory=memory).memory)
