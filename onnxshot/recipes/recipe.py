"""What the user asked for, as values that go to YAML and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from onnxshot.recipes.keys import BadKey, Check, refuse, texts
from onnxshot.recipes.layer_rule import LayerRule, rules_of
from onnxshot.recipes.plain_values import Plain, is_block
from onnxshot.recipes.vocabulary import (
    ACTIVATION_TYPES,
    EFFORTS,
    FORMATS,
    METHODS,
    MODES,
    PRECISIONS,
    WEIGHT_METHODS,
    WEIGHT_TYPES,
)

_OF_INT8 = (
    "mode", "format", "activation_type", "weight_type", "block", "include", "layers", "complete", "portable_ops",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe(Plain):
    """How to quantize. Every field has the default of `onnxshot quantize`.

    Attributes:
        target: name of the target.
        mode: static (calibrated, dynamic where the target runs that better), dynamic, or weights (storage only).
        precision: int8; fp16 or bf16 (floats of 16 bits where values allow it, nothing in int8); or int8+fp16 (what
            int8 leaves in float goes to fp16).
        format: qdq (standard) or qoperator (QLinearConv, QLinearMatMul).
        activation_type, weight_type: type names; None takes the target's own.
        block: how many inputs of a product share a scale of its int4 weight, which has one per output and block.
        per_channel: a scale per output channel of every weight, else one per weight.
        effort: fast, balanced or best: how much is done for accuracy (see recovery/plan_candidates.py).
        method: how activation ranges are chosen from statistics.
        grid: whether inputs that lie on a grid of 256 values per channel are quantized on it, where the effort is not
            fast; None tries both on calibration samples.
        equalize: whether channels are equalized where the effort is not fast; None tries both on calibration samples.
        smooth: whether outliers in products' inputs are moved into the weights as far as a search finds best, where the
            effort is not fast; None tries both, and moves those of dynamic products by a fixed share where it does not.
        clip: whether ranges by method auto may be smaller than the extremes; None tries both.
        weight_method: minmax (no weight is clipped) or mse (least squared error per channel).
        exclude, include: globs over node names, tensor names and op types.
        layers: keys of a `LayerRule` by a glob as of `include`: what is asked of those layers. Of two globs that pick a
            layer, the later one counts, key by key.
        complete: keep the scales of a quantized model, and quantize the rest of it.
        portable_ops: standard operators only, where the target has a quicker one of its own: an LSTM in int8 is a file
            for ONNX Runtime alone. LSTMs that `include` or `layers` name are quantized all the same.
        concat_ratio: a Concat whose inputs' ranges differ by more than this stays float.
        batch: the size that the batch dimension is frozen at.
        shapes: the sizes that all dimensions of an input are frozen at, by its name.
    """

    target: str = "ort"
    mode: str = "static"
    precision: str = "int8"
    format: str = "qdq"
    activation_type: str | None = None
    weight_type: str | None = None
    block: int = 128
    per_channel: bool = True
    effort: str = "balanced"
    method: str = "auto"
    grid: bool | None = None
    equalize: bool | None = None
    smooth: bool | None = None
    clip: bool | None = None
    weight_method: str = "minmax"
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    complete: bool = False
    portable_ops: bool = False
    concat_ratio: float = 8.0
    batch: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ratio = self.concat_ratio
        named = (
            ("mode", self.mode, MODES),
            ("effort", self.effort, EFFORTS),
            ("precision", self.precision, PRECISIONS),
            ("format", self.format, FORMATS),
            ("method", self.method, METHODS),
            ("weight_method", self.weight_method, WEIGHT_METHODS),
            ("activation_type", self.activation_type, (None, *ACTIVATION_TYPES)),
            ("weight_type", self.weight_type, (None, *WEIGHT_TYPES)),
        )
        refuse((name, v, v in known, f"one of {', '.join(k for k in known if k)}") for name, v, known in named)
        refuse(
            (
                ("target", self.target, isinstance(self.target, str), "a name, such as ort"),
                ("block", self.block, is_block(self.block), "a number from 2 up"),
                ("per_channel", self.per_channel, isinstance(self.per_channel, bool), "true or false"),
                ("complete", self.complete, isinstance(self.complete, bool), "true or false"),
                ("portable_ops", self.portable_ops, isinstance(self.portable_ops, bool), "true or false"),
                ("grid", self.grid, self.grid in (None, True, False), "true, false or null"),
                ("equalize", self.equalize, self.equalize in (None, True, False), "true, false or null"),
                ("smooth", self.smooth, self.smooth in (None, True, False), "true, false or null"),
                ("clip", self.clip, self.clip in (None, True, False), "true, false or null"),
                ("concat_ratio", ratio, _is_ratio(ratio), "a number from 1 up"),
                texts("exclude", self.exclude),
                texts("include", self.include),
                ("batch", self.batch, self.batch is None or _is_size(self.batch), "a number from 1 up"),
            )
        )
        refuse(_shapes(self.shapes))
        for f in fields(self):
            value = getattr(self, f.name)
            if not self.quantizes and f.name in _OF_INT8 and value not in (f.default, {}):
                said, hint = f"is {value!r}, which does not go with", f"leave it out of {self.precision}"
                raise BadKey((f.name,), said, hint, ("precision",))
        for glob, rule in self.rules.items():
            if rule.mode == "static" and self.mode != "static":
                said, hint = "is 'static', which does not go with", "make that static, and give other layers theirs"
                raise BadKey(("layers", glob, "mode"), said, hint, ("mode",))

    @property
    def rules(self) -> dict[str, LayerRule]:
        """What is asked of some layers, by the glob that picks them."""
        return rules_of(self.layers)

    @property
    def quantizes(self) -> bool:
        """Whether anything goes into int8."""
        return self.precision.startswith("int8")

    @property
    def half(self) -> str | None:
        """The floats of 16 bits that what is not quantized goes into; None where it stays as it is."""
        last = self.precision.rpartition("+")[2]
        return None if last == "int8" else last

    @property
    def range_method(self) -> str:
        """The method that ranges are chosen by: auto without clipping is min-max."""
        return "minmax" if self.method == "auto" and self.clip is False else self.method


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 63  # ONNX dimensions are int64


def _shapes(given: object) -> Iterator[Check]:
    """Checks of sizes by input."""
    yield "shapes", given, isinstance(given, Mapping), "sizes by input, such as x: [1, 3, 224, 224]"
    assert isinstance(given, Mapping)
    for name, sizes in given.items():
        fits = isinstance(name, str) and isinstance(sizes, tuple)
        yield ("shapes", name), sizes, fits, "the sizes of an input by its name, such as [1, 3, 224, 224]"
        for i, size in enumerate(sizes):
            yield ("shapes", name, i), size, _is_size(size), "a whole number from 1 up"
