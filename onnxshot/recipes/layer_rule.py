"""Layer rules: settings of a quantize stage that apply to some layers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnxshot.recipes.keys import BadKey, refuse
from onnxshot.recipes.plain_values import BLOCKS, Plain, is_block
from onnxshot.recipes.vocabulary import (
    BITS,
    METHODS,
    MODES_OF_LAYERS,
    WEIGHT_METHODS,
    WEIGHT_TYPES,
    Bits,
    Block,
    Method,
    ModeOfLayers,
    WeightMethod,
    WeightType,
)


@dataclass(frozen=True, slots=True)
class LayerRule(Plain):
    """Settings of a quantize stage for the layers that a glob matches; None means the setting of the stage.

    Attributes:
        mode: 'static', 'dynamic' or 'weights', as in `Recipe`, even where that is not faster; 'dynamic16', for dynamic
            products of inputs in 16 bits (two 8-bit products); 'stored', to compute in float with weights that are
            stored in 8 bits where the target has such a form; or 'float', to leave the layers unquantized.
        weight_type, bits, block, asymmetric, per_channel, weight_method: as in `Recipe`.
        method: range method of the layers' outputs, as in `Recipe`.

    Raises:
        BadKey: a value is wrong.
    """

    mode: ModeOfLayers | None = None
    weight_type: WeightType | None = None
    bits: Bits | None = None
    block: Block | None = None
    asymmetric: bool | None = None
    per_channel: bool | None = None
    weight_method: WeightMethod | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        named = (
            ("mode", self.mode, MODES_OF_LAYERS),
            ("weight_type", self.weight_type, tuple(WEIGHT_TYPES)),
            ("bits", self.bits, BITS),
            ("weight_method", self.weight_method, WEIGHT_METHODS),
            ("method", self.method, METHODS),
        )
        refuse((name, v, v is None or v in known, f"one of {', '.join(map(str, known))}") for name, v, known in named)
        whole, flag, zero = self.block, self.per_channel, self.asymmetric
        refuse(
            (
                ("block", whole, whole is None or is_block(whole), BLOCKS),
                ("asymmetric", zero, zero is None or isinstance(zero, bool), "true or false"),
                ("per_channel", flag, flag is None or isinstance(flag, bool), "true or false"),
            )
        )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not None, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def rules_of(layers: object) -> dict[str, LayerRule]:
    """Parse the key `layers` of a recipe into rules by glob. Raises BadKey for an unknown key or a wrong value."""
    wanted = "globs with keys and values: {'conv1*': {mode: float}}"
    refuse((("layers", layers, isinstance(layers, Mapping), wanted),))
    assert isinstance(layers, Mapping)
    rules = {}
    for glob, values in layers.items():
        fits = isinstance(glob, str) and isinstance(values, Mapping) and bool(values)
        refuse(((("layers", glob), values, fits, "keys and values, such as {mode: float}"),))
        try:
            rules[glob] = LayerRule.from_dict(values)
        except BadKey as e:
            raise e.under("layers", glob) from e
    return rules
