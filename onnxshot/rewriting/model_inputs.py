"""Specs of a model's inputs, as they are or at fixed shapes, and the preset that fills them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import helper

from onnxshot.calibration.preset import Preset, load_preset
from onnxshot.calibration.readers import InputSpec
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.graph import Model
from onnxshot.graph.fixed_shapes import FixedShapes, resolve_fixed_shapes
from onnxshot.graph.macs import concrete_shapes

MOST_FROZEN = 2 << 30
"""Most bytes that a tensor of a model whose dimensions are frozen may have: a run holds several at a time."""
_MOST_TOGETHER = 32 << 30  # bytes of all tensors of such a model: no run holds them at once, but each takes its time


def input_specs(model: Model) -> list[InputSpec]:
    """Names, dtypes and shapes of the model's inputs, as calibration data is held against them."""
    specs = []
    for tensor in model.graph.inputs:
        kind = model.elem_type(tensor)
        if not kind:
            raise CalibrationError(
                f"input {tensor.name!r} is not a tensor, and samples are of tensors only",
                "--mode dynamic and --mode weights need no samples",
            )
        specs.append(InputSpec(tensor.name, helper.tensor_dtype_to_np_dtype(kind), model.shape(tensor)))
    return specs


def frozen_sizes(model: Model, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> FixedShapes:
    """The dimensions of the model's inputs that these freeze.

    Raises UsageError where they contradict the model, or make a tensor of it larger than MOST_FROZEN, or all of
    them together larger than _MOST_TOGETHER.
    """
    found = resolve_fixed_shapes({tensor.name: model.shape(tensor) for tensor in model.graph.inputs}, batch, shapes)
    if found:
        sizes = {name: tuple(d if isinstance(d, int) else 1 for d in dims) for name, dims in found.inputs.items()}
        _refuse_vast(sizes)
        _refuse_vast(concrete_shapes(model, sizes))
    return found


def _refuse_vast(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError for a tensor that is too large, counted as if each of its elements took 4 bytes."""
    for name, dims in shapes.items():
        size = 4 * math.prod(dims)
        if size > MOST_FROZEN:
            what = f"frozen at these sizes, tensor {name!r} of shape {shown(list(dims))} takes {size / 1e9:.3g} GB"
            raise UsageError(what, f"freeze it at smaller ones: a tensor may have {MOST_FROZEN / 1e9:.3g} GB")
    together = sum(4 * math.prod(dims) for dims in shapes.values())
    if together > _MOST_TOGETHER:
        what = f"frozen at these sizes, the model's {len(shapes)} tensors take {together / 1e9:.3g} GB together"
        raise UsageError(what, f"freeze it at smaller ones: they may have {_MOST_TOGETHER / 1e9:.3g} GB")


def frozen_specs(model: Model, sizes: FixedShapes) -> list[InputSpec]:
    """What samples of a model whose dimensions will be frozen are held against; several may make a batch."""
    found = []
    for spec in input_specs(model):
        shape = sizes.dims(spec.name, spec.shape)
        if shape and spec.shape and not isinstance(spec.shape[0], int):
            shape = (spec.shape[0], *shape[1:])
        found.append(replace(spec, shape=shape))
    return found


def resolve_preset(preset: str | Preset | None) -> Preset | None:
    """The preset itself, whether it was given by name, as a YAML file, or as a value."""
    return load_preset(preset) if isinstance(preset, str) else preset
