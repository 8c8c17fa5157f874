"""`inspect`: show what would be quantized, and why the rest would not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import (
    CalibOpt,
    ExcludeOpt,
    IncludeOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    ModeOpt,
    PrecisionOpt,
    PresetOpt,
    TargetOpt,
    TokenizerOpt,
    preset_of,
    tell,
)

if TYPE_CHECKING:
    from onnxshot.api.inspect import Inspection
    from onnxshot.graph.skip import Skip

_NOTE = "note: "


def inspect(
    model: ModelArg,
    target: TargetOpt = "ort",
    mode: ModeOpt = "static",
    precision: PrecisionOpt = "int8",
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    exclude: ExcludeOpt = None,
    include: IncludeOpt = None,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what would be quantized, what not, and why.

    Needs no data. With --calib, also a summary of the inputs.
    """
    reading = preset_of(preset, tokenizer, length)
    recipe = onnxshot.Recipe.from_dict(
        {"target": target, "mode": mode, "precision": precision, "exclude": exclude, "include": include}
    )
    with terminal.progress(not as_json, "looking at the model") as show:
        settings = onnxshot.Settings(memory=memory, progress=show)
        found = onnxshot.inspect(model, recipe=recipe, calib=calib, preset=reading, settings=settings)
    tell(as_json, found.to_dict(), lambda: _show(found))


_FLOATS = "left in float:"  # the line of the plan before the nodes and their reasons
_REASONS, _NAMES = 12, 2  # how many of each are shown


def _show(found: Inspection) -> None:
    """Print the description: on a terminal wrapped, with the weights as a table that fits."""
    from onnxshot.cli.fitted_table import Field, figures, print_table
    from onnxshot.graph.weight_sparsity import sparsity_notes

    console = terminal.stderr_console()
    if not console.is_terminal:
        terminal.show_text(found.to_text())
        return
    lines = replace(found, layers=()).to_text().splitlines()
    for line in lines:
        if line == _FLOATS and found.plan is not None:
            terminal.say(console, line)
            for reason in _reasons(found.plan.skips):
                terminal.say(console, f"  {reason}", indent="    ")
        elif not line.startswith((_NOTE, "  ")):
            terminal.say(console, line)
    if benefits := sparsity_notes(found.layers):
        fields = (
            Field("weight of", name=True), Field("op", drop=3), Field("values", figure=True, drop=2),
            Field("MACs", figure=True, drop=1), *figures("zeros"), Field("pattern", drop=4),
            *figures("kB", "packed kB"),
        )  # fmt: skip
        rows = [
            (
                layer.node, layer.op, f"{layer.parameters:,}", f"{layer.macs:,}", f"{100 * layer.sparsity:.1f} %",
                layer.pattern, f"{layer.bytes / 1e3:.1f}", f"{layer.packed_bytes / 1e3:.1f}",
            )
            for layer in found.layers
        ]  # fmt: skip
        print_table(console, fields, rows)
        for line in benefits:
            terminal.say(console, line)
    terminal.say_notes(console, [line.removeprefix(_NOTE) for line in lines if line.startswith(_NOTE)])


def _reasons(skips: Iterable[Skip]) -> Iterator[str]:
    """One text for each reason: the nodes that it holds for, by operator, the reason, and some of their names."""
    reasons: dict[str, list[Skip]] = {}
    for skip in skips:
        reasons.setdefault(skip.reason, []).append(skip)
    for reason, nodes in list(reasons.items())[:_REASONS]:
        ops = ", ".join(f"{count} {op}" for op, count in Counter(node.op for node in nodes).most_common())
        more = f" and {len(nodes) - _NAMES} more" if len(nodes) > _NAMES else ""
        yield f"{ops}: {reason}: {', '.join(node.node for node in nodes[:_NAMES])}{more}"
    if len(reasons) > _REASONS:
        yield f"... {len(reasons) - _REASONS} more reasons: --json"
