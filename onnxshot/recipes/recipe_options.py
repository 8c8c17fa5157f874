"""Keyword options of the verbs: the fields of `Recipe` and of `LayerRule` as types, so that editors know them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypedDict, TypeVar, get_type_hints

from onnxshot.calibration.range_methods import RangeFunction
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.vocabulary import (
    ActivationType,
    Bits,
    Block,
    Effort,
    Format,
    Method,
    Mode,
    ModeOfLayers,
    Precision,
    TargetName,
    WeightMethod,
    WeightType,
)

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


class LayerOptions(TypedDict, total=False):
    """Settings of the layers that a glob matches: the fields of `onnxshot.recipes.layer_rule.LayerRule`."""

    mode: ModeOfLayers | None
    weight_type: WeightType | None
    bits: Bits | None
    block: Block | None
    asymmetric: bool | None
    per_channel: bool | None
    weight_method: WeightMethod | None
    method: Method | None


class StageOptions(TypedDict, total=False):
    """The fields of `onnxshot.Recipe` as keyword options of `compress`, whose own `layers` are those of pruning."""

    target: TargetName
    mode: Mode
    precision: Precision
    format: Format | None
    activation_type: ActivationType | None
    weight_type: WeightType | None
    bits: Bits | None
    block: Block | None
    asymmetric: bool | None
    per_channel: bool
    effort: Effort
    method: Method | RangeFunction
    grid: bool | None
    equalize: bool | None
    smooth: bool | None
    clip: bool | None
    look: bool | None
    place: bool | None
    weight_method: WeightMethod
    exclude: Sequence[str]
    include: Sequence[str]
    complete: bool
    portable_ops: bool
    concat_ratio: float
    batch: int | None
    shapes: Mapping[str, Sequence[int]]


class RecipeOptions(StageOptions, total=False):
    """The fields of `onnxshot.Recipe`, which describes each, as keyword options of `quantize` and others.

    Example:
        >>> asked: onnxshot.RecipeOptions = {"target": "openvino", "effort": "best"}
        >>> onnxshot.quantize("model.onnx", "samples/", **asked)
    """

    layers: Mapping[str, LayerOptions]


def listed(call: _Verb) -> _Verb:
    """Decorator: list the fields of `Recipe` with their defaults in the signature, in place of `**options`.

    `help` and notebooks read the signature; nothing else changes. It must be the outermost decorator.
    """
    signature = inspect.signature(call)
    every = list(signature.parameters.values())
    own = {parameter.name for parameter in every}
    types = get_type_hints(RecipeOptions)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY,
            default={} if field.default is MISSING else field.default,
            annotation=types[field.name],
        )
        for field in fields(Recipe)
        if field.name not in own
    ]  # fmt: skip

    call.__dict__["__signature__"] = signature.replace(parameters=[*every[:-1], *options])
    return call
