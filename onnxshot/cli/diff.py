"""`diff`: show what differs between two files of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    PresetOpt,
    SamplesOpt,
    ThreadsOpt,
    TokenizerOpt,
    preset_of,
    samples_of,
    tell,
)
from onnxshot.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from onnxshot.api.diff import Diff, Only
    from onnxshot.difference.compare_layers import LayerChange

_ROWS = 20
_PAIRS = 5


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A model.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another file of the same model.", show_default=False)],
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    samples: SamplesOpt = "all",
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """List the layers in which two files of a model differ.

    They may differ in type, scale, mask, shape or values. With --calib, also the effect on the outputs.
    """
    reading = preset_of(preset, tokenizer, length)
    with terminal.progress(not as_json, "comparing") as show:
        settings = onnxshot.Settings(samples=samples_of(samples), threads=threads, memory=memory, progress=show)
        found = onnxshot.diff(before, after, calib, preset=reading, settings=settings)
    tell(as_json, found.to_dict(), lambda: _show(found))


def _show(found: Diff) -> None:
    """Print sizes and accuracy, the layers that changed most, then scales and nodes that only one file has."""
    from onnxshot.cli.fitted_table import Field, figures, print_table
    from onnxshot.cli.merged_errors import merged

    console = terminal.stderr_console()
    if console.is_terminal:
        _frame(console, found)
    else:
        _headline(console, found)
    if found.contract:
        terminal.say(console, f"inputs and outputs: {found.contract}")
    counts = ", ".join(f"{what} of {count}" for what, count in found.changed.items())
    terminal.say(console, f"layers: {len(found.layers)} differ ({counts or 'none'}), {found.unchanged} do not")
    fields = (
        Field("layer", name=True), Field("op", drop=3), Field("precision"), Field("weight", drop=2),
        Field("SQNR dB", figure=True), Field("zeros", figure=True, drop=4), Field("scale", figure=True, drop=1),
    )  # fmt: skip
    print_table(console, fields, [_cells(row) for row in found.layers[:_ROWS]])
    if len(found.layers) > _ROWS:
        terminal.say(console, f"... and {len(found.layers) - _ROWS} more: --json has them")
    for pair in found.activations[:_PAIRS]:
        kinds = pair.after if pair.before == pair.after else f"{pair.before} -> {pair.after}"
        text = (
            f"{kinds}, scale {pair.scale_before:.4g} -> {pair.scale_after:.4g}, zero point shifted by {pair.zero_shift}"
        )
        terminal.say(console, f"activation {pair.tensor}: {text}")
    if found.quantized_before or found.quantized_after:
        moved = f"{len(found.activations)} of those in both files differ"
        terminal.say(console, f"quantized activations: {found.quantized_before} -> {found.quantized_after}, {moved}")
    for where, nodes in (("A", found.only_before), ("B", found.only_after)):
        if nodes:
            terminal.say(console, f"only in {where}: {_by_op(nodes)}")
    if found.worst and found.tensor_samples < found.samples:
        terminal.say(console, f"tensors: compared on the first {counted(found.tensor_samples, 'sample')}")
    if console.is_terminal:
        columns = (Field("worst tensors", name=True), *figures("tensors"), Field("op", drop=1), *figures("SQNR dB"))
        rows = merged(found.worst)[:_PAIRS]
        print_table(console, columns, [(row.tensor, str(count), row.op, f"{row.sqnr_db:.1f}") for row, count in rows])
    else:
        for worst in found.worst[:_PAIRS]:
            terminal.say(console, f"tensor {worst.tensor} ({worst.op}): SQNR {worst.sqnr_db:.1f} dB")
    terminal.say_notes(console, found.notes)


def _frame(console: Console, found: Diff) -> None:
    """Print sizes and accuracy in a frame."""
    from onnxshot.cli.result_frame import accuracy_lines, print_frame, size_line

    terminal.say(console, f"A {found.before}\nB {found.after}")
    accuracy = accuracy_lines(found.sqnr_db, found.agreement, {"judged": found.samples})
    print_frame(console, [size_line(found.bytes_before, found.bytes_after), *accuracy], "A", "B")


def _headline(console: Console, found: Diff) -> None:
    """Print sizes and accuracy in one line."""
    from onnxshot.cli import tables
    from onnxshot.report.advice import size_change

    parts = [f"{escape(found.after)} against {escape(found.before)}"]
    parts.append(size_change(found.bytes_before, found.bytes_after))
    if found.sqnr_db is not None:
        parts.append(f"{tables.accuracy(found.sqnr_db, None)} on {counted(found.samples, 'sample')}")
    if found.agreement is not None:
        parts.append(tables.accuracy(None, found.agreement))
    console.print("  ".join(parts))


def _cells(row: LayerChange) -> list[str]:
    precision = row.after if row.before == row.after else f"{row.before} -> {row.after}"
    shapes = ["x".join(map(str, shape)) for shape in (row.shape_before, row.shape_after) if shape is not None]
    db = "" if row.sqnr_db is None or "values" not in row.changes else f"{row.sqnr_db:.1f}"
    before, after = row.sparsity_before, row.sparsity_after
    zeros = "" if before is None or after is None or "mask" not in row.changes else f"{before:.1%} -> {after:.1%}"
    scale = "" if row.scale_ratio is None or "scale" not in row.changes else f"x {row.scale_ratio:.3g}"
    return [row.node, row.op, precision, " -> ".join(dict.fromkeys(shapes)), db, zeros, scale]


def _by_op(nodes: tuple[Only, ...]) -> str:
    ops: dict[str, list[str]] = {}
    for node in nodes:
        ops.setdefault(node.op, []).append(node.node)
    return ", ".join(f"{len(names)} x {op} such as {names[0]!r}" for op, names in ops.items())
