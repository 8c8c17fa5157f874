"""Recipe: how a model is to be quantized, as a value that converts to YAML and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from onnxshot.arguments import named_fields
from onnxshot.calibration.range_methods import RangeFunction, known_methods, named_function
from onnxshot.recipes.keys import BadKey, Check, refuse, texts
from onnxshot.recipes.layer_rule import LayerRule, rules_of
from onnxshot.recipes.plain_values import BLOCKS, Plain, is_block
from onnxshot.recipes.vocabulary import (
    ACTIVATION_TYPES,
    BITS,
    EFFORTS,
    FORMATS,
    MODES,
    PRECISIONS,
    WEIGHT_METHODS,
    WEIGHT_TYPES,
    ActivationType,
    Bits,
    Block,
    Effort,
    Format,
    Method,
    Mode,
    Precision,
    TargetName,
    WeightMethod,
    WeightType,
)

_OF_INT8 = (
    "mode", "format", "activation_type", "weight_type", "bits", "block", "asymmetric", "include", "layers", "complete",
    "portable_ops",
)  # fmt: skip


@named_fields
@dataclass(frozen=True, slots=True)
class Recipe(Plain):
    """How to quantize a model. The defaults are those of `onnxshot quantize`.

    Attributes:
        target: name of the target, the runtime that the file is made for.
        mode: 'static' (scales from calibration; dynamic for operators that the target runs better so), 'dynamic'
            (scales of activations at run time), 'weights' (only stored weights are quantized), or 'auto' (per product:
            weights in blocks, or dynamic, whichever is faster at the rows that samples bring).
        precision: 'int8'; 'fp16' or 'bf16' (16-bit floats where values allow it, nothing in int8); or 'int8+fp16'
            (what int8 leaves in float becomes fp16).
        format: 'qdq' (Q/DQ pairs, standard) or 'qoperator' (QLinearConv, QLinearMatMul). None uses the target's own:
            Q/DQ pairs, and for weights in blocks the operator of the runtime that multiplies by them (MatMulNBits).
        activation_type: type of quantized activations, such as 'uint8'; None uses the target's own.
        weight_type: type of quantized weights, such as 'int8' or 'int4'; None uses the target's own.
        bits: with mode 'weights', 4 or 8 bits for weights of products and for embedding tables, in blocks; None for
            8 bits with one scale per output, in standard operators.
        block: block size of such weights: the number of inputs that share a scale, for each output; 'channel' for all
            inputs. None uses the target's own for that many bits.
        asymmetric: whether each block has a zero point of its own; None uses the target's own.
        per_channel: whether a weight has one scale per output channel (per-channel) or a single one (per-tensor).
        effort: 'fast', 'balanced' or 'best': how much is tried to recover accuracy (see
            onnxshot/recovery/plan_candidates.py).
        method: range method of activations (see onnxshot/calibration/range_methods.py); or a function from the counts
            and the edges of a histogram to (low, high), which recipes call by its name.
        grid: whether model inputs whose values lie on a grid of 256 values per channel are quantized on that grid.
        equalize: whether to apply cross-layer equalization.
        smooth: whether to apply SmoothQuant, with a strength that is searched for. With None, dynamic products are
            smoothed with a fixed strength where no search is made.
        clip: whether ranges of method 'auto' may be smaller than the extremes.
        look: whether groups of nodes go back to float whose int8 costs the outputs more than it saves time (see
            onnxshot/recovery/look.py); a recorded recipe has False, and what was found in `layers`.
        place: whether quantized nodes go back to float where the kernels of this machine are not faster in int8.
        weight_method: 'minmax' (no weight is clipped) or 'mse' (least squared error per channel).
        exclude: globs over node names, tensor names and operator types; what they match stays float. One that begins
            with `?` may match nothing: '?*detect*'.
        include: globs of the same kind; what they match is quantized even where heuristics would leave it in float.
        layers: settings of some layers: a glob as in `include` -> fields of `LayerRule`. Where two globs match a layer,
            the later one takes precedence, field by field.
        complete: whether to keep the scales of an input that is already quantized, and to quantize the rest of it.
        portable_ops: whether to use standard operators only. Otherwise an LSTM is quantized with an operator that only
            ONNX Runtime has. LSTMs that `include` or `layers` name are quantized in any case.
        concat_ratio: a Concat whose inputs' ranges differ by a larger factor stays float.
        batch: size to fix the batch dimension at; None leaves it free.
        shapes: sizes to fix all dimensions of an input at, by input name.

    `grid`, `equalize`, `smooth`, `clip` and `look` have no effect with effort 'fast', except for `clip`=False; None
    tries both values on calibration samples and keeps the more accurate. `place`=None is False with
    effort 'fast', else True.

    Raises:
        BadKey: a value is wrong, or two values contradict each other.

    Example:
        >>> Recipe(effort="best", exclude=("lm_head",)).to_dict()["exclude"]
        ['lm_head']
    """

    target: TargetName = "ort"
    mode: Mode = "static"
    precision: Precision = "int8"
    format: Format | None = None
    activation_type: ActivationType | None = None
    weight_type: WeightType | None = None
    bits: Bits | None = None
    block: Block | None = None
    asymmetric: bool | None = None
    per_channel: bool = True
    effort: Effort = "balanced"
    method: Method | RangeFunction = "auto"
    grid: bool | None = None
    equalize: bool | None = None
    smooth: bool | None = None
    clip: bool | None = None
    look: bool | None = None
    place: bool | None = None
    weight_method: WeightMethod = "minmax"
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    complete: bool = False
    portable_ops: bool = False
    concat_ratio: float = 8.0
    batch: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if callable(self.method):
            object.__setattr__(self, "method", named_function(self.method))
        ratio = self.concat_ratio
        named = (
            ("mode", self.mode, MODES),
            ("effort", self.effort, EFFORTS),
            ("precision", self.precision, PRECISIONS),
            ("format", self.format, (None, *FORMATS)),
            ("bits", self.bits, (None, *BITS)),
            ("method", self.method, known_methods()),
            ("weight_method", self.weight_method, WEIGHT_METHODS),
            ("activation_type", self.activation_type, (None, *ACTIVATION_TYPES)),
            ("weight_type", self.weight_type, (None, *WEIGHT_TYPES)),
        )
        refuse((name, v, v in known, f"one of {', '.join(str(k) for k in known if k)}") for name, v, known in named)
        refuse(
            (
                ("target", self.target, isinstance(self.target, str), "a name, such as ort"),
                ("block", self.block, self.block is None or is_block(self.block), BLOCKS),
                ("asymmetric", self.asymmetric, self.asymmetric in (None, True, False), "true, false or null"),
                ("per_channel", self.per_channel, isinstance(self.per_channel, bool), "true or false"),
                ("complete", self.complete, isinstance(self.complete, bool), "true or false"),
                ("portable_ops", self.portable_ops, isinstance(self.portable_ops, bool), "true or false"),
                ("grid", self.grid, self.grid in (None, True, False), "true, false or null"),
                ("equalize", self.equalize, self.equalize in (None, True, False), "true, false or null"),
                ("smooth", self.smooth, self.smooth in (None, True, False), "true, false or null"),
                ("clip", self.clip, self.clip in (None, True, False), "true, false or null"),
                ("look", self.look, self.look in (None, True, False), "true, false or null"),
                ("place", self.place, self.place in (None, True, False), "true, false or null"),
                ("concat_ratio", ratio, _is_ratio(ratio), "a number from 1 up"),
                texts("exclude", self.exclude),
                texts("include", self.include),
                ("batch", self.batch, self.batch is None or _is_size(self.batch), "a number from 1 up"),
            )
        )
        refuse(_shapes(self.shapes))
        for f in sorted(fields(self), key=lambda f: f.name != "bits"):  # bits first: the command line adds their mode
            value = getattr(self, f.name)
            if not self.quantizes and f.name in _OF_INT8 and value not in (f.default, {}):
                said, hint = f"is {value!r}, which does not go with", f"leave it out of {self.precision}"
                raise BadKey((f.name,), said, hint, ("precision",))
        in_blocks = self.bits or self.weight_type or any(rule.bits for rule in self.rules.values())
        if self.block is not None and not in_blocks:
            raise BadKey(("block",), "is given without", "blocks are of weights in 4 or 8 bits: give both", ("bits",))
        if self.asymmetric is not None and not in_blocks:
            raise BadKey(("asymmetric",), "is given without", "it is of weights in blocks: give both", ("bits",))
        if self.bits is not None and self.weight_type is not None:
            said = f"is {self.weight_type!r}, which does not go with"
            raise BadKey(("weight_type",), said, "give one of them", ("bits",))
        if self.bits is not None and self.format == "qoperator":
            raise BadKey(("bits",), f"is {self.bits}, which does not go with", "leave one of them out", ("format",))
        if self.bits is not None and self.mode not in ("weights", "auto"):
            raise BadKey(("bits",), f"is {self.bits}, which does not go with", "use mode weights or auto", ("mode",))
        for glob, rule in self.rules.items():
            if rule.mode == "static" and self.mode not in ("static", "auto"):
                said, hint = "is 'static', which does not go with", "set that to static, and give other layers rules"
                raise BadKey(("layers", glob, "mode"), said, hint, ("mode",))

    def for_target(self, name: str) -> Recipe:
        """The same recipe for a target of any name; `target_named` refuses one that does not exist."""
        return replace(self, target=cast("TargetName", name))

    @property
    def rules(self) -> dict[str, LayerRule]:
        """`layers` as parsed rules, by glob."""
        return rules_of(self.layers)

    @property
    def quantizes(self) -> bool:
        """Whether anything is quantized to int8."""
        return self.precision.startswith("int8")

    @property
    def half(self) -> str | None:
        """The 16-bit float type, 'fp16' or 'bf16', of what is not quantized; None where that stays float32."""
        last = self.precision.rpartition("+")[2]
        return None if last == "int8" else last

    @property
    def range_method(self) -> str:
        """The range method in effect: 'auto' without clipping is 'minmax'."""
        return "minmax" if self.method == "auto" and self.clip is False else str(self.method)


def with_mode(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Plain values of a recipe, with mode weights where they give bits and no mode: bits are of weights in blocks."""
    return {"mode": "weights", **values} if values.get("bits") is not None and "mode" not in values else values


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 63  # ONNX dimensions are int64


def _shapes(given: object) -> Iterator[Check]:
    """The checks of key `shapes`."""
    yield "shapes", given, isinstance(given, Mapping), "sizes by input, such as x: [1, 3, 224, 224]"
    assert isinstance(given, Mapping)
    for name, sizes in given.items():
        fits = isinstance(name, str) and isinstance(sizes, tuple)
        yield ("shapes", name), sizes, fits, "the sizes of an input by its name, such as [1, 3, 224, 224]"
        for i, size in enumerate(sizes):
            yield ("shapes", name, i), size, _is_size(size), "a whole number from 1 up"
