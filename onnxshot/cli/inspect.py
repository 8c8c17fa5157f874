"""`inspect`: show what would be quantized, and why the rest would not."""

from __future__ import annotations

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
    settings = onnxshot.Settings(memory=memory)
    found = onnxshot.inspect(model, recipe=recipe, calib=calib, preset=reading, settings=settings)
    tell(as_json, found.to_dict(), lambda: terminal.show_text(found.to_text()))
