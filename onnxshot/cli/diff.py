"""`diff`: show what differs between two files of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

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

if TYPE_CHECKING:
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
    settings = onnxshot.Settings(samples=samples_of(samples), threads=threads, memory=memory)
    found = onnxshot.diff(before, after, calib, preset=reading, settings=settings)
    tell(as_json, found.to_dict(), lambda: _show(found))


def _show(found: Diff) -> None:
    """Print sizes and accuracy, the layers that changed most, then scales and nodes that only one file has."""
    from onnxshot.cli import tables

    console = terminal.stderr_console()
    parts = [f"{escape(found.after)} against {escape(found.before)}"]
    parts.append(f"{found.bytes_before / 1e6:.2f} -> {found.bytes_after / 1e6:.2f} MB")
    if found.sqnr_db is not None:
        parts.append(f"{tables.accuracy(found.sqnr_db, None)} on {found.samples} samples")
    if found.agreement is not None:
        parts.append(tables.accuracy(None, found.agreement))
    console.print("  ".join(parts))
    if found.contract:
        console.print(escape(f"inputs and outputs: {found.contract}"))
    counts = ", ".join(f"{what} of {count}" for what, count in found.changed.items())
    console.print(f"layers: {len(found.layers)} differ ({counts or 'none'}), {found.unchanged} do not")
    table = Table(terminal.name_column("layer"), "op", "precision", "weight", "SQNR dB", "zeros", "scale", box=None)
    for row in found.layers[:_ROWS]:
        table.add_row(*map(escape, _cells(row)))
    if found.layers:
        console.print(table)
    if len(found.layers) > _ROWS:
        console.print(f"... and {len(found.layers) - _ROWS} more: --json has them")
    for pair in found.activations[:_PAIRS]:
        kinds = pair.after if pair.before == pair.after else f"{pair.before} -> {pair.after}"
        text = (
            f"{kinds}, scale {pair.scale_before:.4g} -> {pair.scale_after:.4g}, zero point shifted by {pair.zero_shift}"
        )
        console.print(escape(f"activation {pair.tensor}: {text}"))
    if found.quantized_before or found.quantized_after:
        moved = f"{len(found.activations)} of those in both files differ"
        console.print(f"quantized activations: {found.quantized_before} -> {found.quantized_after}, {moved}")
    for where, nodes in (("A", found.only_before), ("B", found.only_after)):
        if nodes:
            console.print(escape(f"only in {where}: {_by_op(nodes)}"))
    if found.worst and found.tensor_samples < found.samples:
        console.print(f"tensors: compared on the first {found.tensor_samples} samples")
    for worst in found.worst[:_PAIRS]:
        console.print(escape(f"tensor {worst.tensor} ({worst.op}): SQNR {worst.sqnr_db:.1f} dB"))
    for note in found.notes:
        console.print(escape(f"note: {note}"))


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
