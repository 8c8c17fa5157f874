"""`replay`: repeat a recorded run and check that it gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.help import RESULT
from onnxshot.cli.options import (
    CacheOpt,
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    PresetOpt,
    StatsOpt,
    TokenizerOpt,
    files_of,
    place_of,
    preset_of,
    tell,
)
from onnxshot.errors import GoalMissed

if TYPE_CHECKING:
    from onnxshot.api.replay import Replayed


def replay(
    model: ModelArg,
    recorded: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The .recipe.yaml file beside a result, or the result itself.")
    ],
    calib: CalibOpt = None,
    stats: StatsOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            rich_help_panel=RESULT,
            help="Default: MODEL.replay.onnx, beside MODEL.",
        ),
    ] = None,
    cache: CacheOpt = True,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Repeat a run from its record, to the same bytes.

    Exit code 3 if the bytes differ.
    """
    reading = preset_of(preset, tokenizer, length)
    out, named = place_of(output, model.parent / f"{model.stem}.replay.onnx")
    files = files_of(unnamed=() if named else (out,))
    with terminal.progress(not as_json) as show:
        settings = onnxshot.Settings(use_cache=cache, memory=memory, files=files, progress=show)
        found = onnxshot.replay(model, recorded, out, calib=calib, stats=stats, preset=reading, settings=settings)
    verdict = {True: "the same bytes", False: "other bytes", None: "its bytes were not recorded"}[found.same]
    lines = [f"{found.output}  {' + '.join(found.runs)}: {verdict}  SHA-256 {found.sha256}", *found.notes]
    lines += [f"{name} was {then}, is {now}" for name, (then, now) in found.changed.items()]
    tell(as_json, found.to_dict(), lambda: _show(found, model, verdict, lines))
    if found.same is False:
        others = "; ".join(lines[1:]) or "the versions are the same, so the CPU probably differs, or --memory"
        if recorded.suffix.lower() == ".onnx":  # its metadata has no hash of them
            others += "; or the samples or the preset differ, of which an .onnx file knows nothing"
        raise GoalMissed(f"{found.output} was written, but its bytes are not those of the record", others)


def _show(found: Replayed, model: Path, verdict: str, lines: list[str]) -> None:
    """Print what was repeated: in a frame on a terminal, else these lines."""
    console = terminal.stderr_console()
    if console.is_terminal:
        from onnxshot.cli.result_frame import Line, bytes_of, print_frame, print_written, size_line

        same = {True: "ready", False: "bad", None: "caution"}[found.same]
        runs = Line("runs", "", " + ".join(found.runs), verdict, same)
        print_frame(console, [size_line(bytes_of(model), bytes_of(found.output)), runs])
        print_written(console, [str(found.output)])
        lines = [f"SHA-256 {found.sha256}", *lines[1:]]
    terminal.show_text("\n".join(lines))
