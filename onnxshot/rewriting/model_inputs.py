"""Names, types and shapes of a model's inputs, as they are or with fixed sizes, for checks of calibration data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnx import helper

from onnxshot.calibration.preset import Preset, load_preset
from onnxshot.calibration.readers import InputSpec
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import FixedShapes, resolve_fixed_shapes
from onnxshot.graph.macs import concrete_shapes

MAX_TENSOR_BYTES = 2 << 30
"""Largest size in bytes of one tensor of a model with fixed sizes: a run holds several tensors at a time."""
_MAX_TOTAL_BYTES = 32 << 30  # largest size of all tensors together: it limits the time of a run, not its memory


def input_specs(model: Model) -> list[InputSpec]:
    """The name, dtype and shape of each input of the model, against which calibration data is checked.

    Raises:
        CalibrationError: An input is a sequence or another value that is not a tensor.
    """
    specs = []
    for tensor in model.graph.inputs:
        kind = model.elem_type(tensor)
        if not kind:
            raise CalibrationError(
                f"input {tensor.name!r} is not a tensor, and samples consist of tensors only",
                "[[mode=dynamic]] and [[mode=weights]] need no samples",
            )
        specs.append(InputSpec(tensor.name, helper.tensor_dtype_to_np_dtype(kind), model.shape(tensor)))
    return specs


def fixed_shapes_for(model: Model, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> FixedShapes:
    """The sizes at which a batch size and shapes fix the dimensions of the model's inputs.

    Args:
        model: The model.
        batch: Batch size; None to leave it.
        shapes: Input name -> its fixed shape.

    Returns:
        The fixed sizes of inputs and of symbolic dimensions; empty if nothing is fixed.

    Raises:
        UsageError: The sizes contradict the model, one of its tensors would take more than `MAX_TENSOR_BYTES` bytes, or
            all tensors together would take more than 32 GiB.
    """
    found = resolve_fixed_shapes({tensor.name: model.shape(tensor) for tensor in model.graph.inputs}, batch, shapes)
    if found:
        sizes = {name: tuple(d if isinstance(d, int) else 1 for d in dims) for name, dims in found.inputs.items()}
        _refuse_too_large(sizes)
        _refuse_too_large(concrete_shapes(model, sizes))
    return found


def _refuse_too_large(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError if tensors of these shapes take too many bytes, at 4 bytes per element."""
    for name, dims in shapes.items():
        size = 4 * math.prod(dims)
        if size > MAX_TENSOR_BYTES:
            what = f"with these fixed sizes, tensor {name!r} of shape {shown(list(dims))} takes {size / 1e9:.3g} GB"
            raise UsageError(what, f"fix smaller ones: a tensor may take {MAX_TENSOR_BYTES / 1e9:.3g} GB")
    together = sum(4 * math.prod(dims) for dims in shapes.values())
    if together > _MAX_TOTAL_BYTES:
        what = f"with these fixed sizes, the model's {len(shapes)} tensors take {together / 1e9:.3g} GB together"
        raise UsageError(what, f"fix smaller ones: together they may take {_MAX_TOTAL_BYTES / 1e9:.3g} GB")


def fixed_specs(model: Model, sizes: FixedShapes) -> list[InputSpec]:
    """The input specs that samples must match if these sizes are fixed; a dynamic batch stays dynamic.

    Several samples can then be joined into one batch.
    """
    found = []
    for spec in input_specs(model):
        shape = sizes.dims(spec.name, spec.shape)
        if shape and spec.shape and not isinstance(spec.shape[0], int):
            shape = (spec.shape[0], *shape[1:])
        found.append(replace(spec, shape=shape))
    return found


def with_batch_of(specs: Sequence[InputSpec], others: Sequence[InputSpec]) -> list[InputSpec]:
    """The input specs, with the leading sizes that are fixed in the inputs of the same names of another model."""
    fixed = {other.name: other.shape[0] for other in others if other.shape and isinstance(other.shape[0], int)}
    return [
        replace(spec, shape=(fixed[spec.name], *spec.shape[1:])) if spec.shape and spec.name in fixed else spec
        for spec in specs
    ]


def resolve_preset(
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
) -> Preset | SoundPreset | TextPreset | None:
    """The preset for a name, the path of a YAML file or a preset; None for None."""
    given = plain_preset(preset)
    return load_preset(given) if isinstance(given, str) else given


def plain_preset(
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
) -> str | Preset | SoundPreset | TextPreset | None:
    """The preset, whose path is text."""
    return str(preset) if isinstance(preset, Path) else preset
