"""A result must not be larger than its input."""

from __future__ import annotations

from dataclasses import replace

from onnxshot.errors import UsageError
from onnxshot.graph.save import stored_size
from onnxshot.stages.make_quantized import Quantized, make_quantized
from onnxshot.stages.prepare_model import prepare_model

_GROWTH_BYTES, _GROWTH = 1 << 14, 0.03
"""By how much a file may be larger than the input: names and scales take some bytes. Its record does not count."""
_SEVERAL = 2  # 8 bits for 4 is what was asked for; more is of no use where a file is to become smaller


def prevent_growth(made: Quantized) -> Quantized:
    """Return the result to deliver: the model left in float where the quantized file would be larger than the input.

    A larger result is kept where nodes were asked for by name, or trained scales are kept.

    Raises:
        UsageError: a model that is quantized already would become several times larger.
    """
    prepared, recipe = made.prepared, made.prepared.recipe
    size, given = stored_size(made.model), made.report.input_bytes
    if recipe.include or not recipe.quantizes or size <= given + max(_GROWTH_BYTES, given * _GROWTH):
        return made
    if not prepared.trained:
        in_float = replace(recipe, exclude=("*",))
        plain = prepare_model(prepared.source, in_float, prepared.settings)
        prepared.model.check_files()  # it was read again
        other = make_quantized(plain, made.samples, made.reference)
        if stored_size(other.model) < size:
            other.report.notes.append(
                f"nothing was quantized: the file would take {size} bytes, {size - given} more than the input"
            )
            return other
    if prepared.requantized and not recipe.exclude and size > _SEVERAL * given + _GROWTH_BYTES:
        raise UsageError(
            f"the file would take {size} bytes, the input takes {given}: its weights came in fewer bits",
            "keep the input, which is quantized already, or name the nodes to quantize with [[include=OP]]",
        )
    made.report.notes.append(f"the file is larger than the input by {size - given} bytes")
    return made
