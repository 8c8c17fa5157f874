"""Stages of a recipe: prune, shrink, quantize, emit. They convert to YAML and back; a quantize stage is a `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.recipes.keys import BadKey, is_number, refuse, texts
from onnxshot.recipes.plain_values import Plain
from onnxshot.recipes.recipe import Recipe, with_mode
from onnxshot.recipes.vocabulary import FormatName

CHANNELS = "channels"
"""The pattern of `prune` that stands for a shrink stage."""
PruneScope = Literal["layer", "global", "erk", "auto"]
ShrinkScope = Literal["all", "mlp", "heads"]
Multiple = Literal[1, 8, 16]
Importance = Literal["auto", "error", "activation", "batchnorm", "l1", "l2"]
SCOPES: tuple[PruneScope, ...] = get_args(PruneScope)
SHRINK_SCOPES: tuple[ShrinkScope, ...] = get_args(ShrinkScope)
MULTIPLES: tuple[Multiple, ...] = get_args(Multiple)
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
_SHARE = "give a share from 0 up to but not including 1, such as 0.5"
_KEPT = "give the share to keep, above 0 and up to 1"


@dataclass(frozen=True, slots=True)
class PruneStage(Plain):
    """A stage that sets weights to zero (see `onnxshot.prune`, whose arguments have the names of the fields).

    Attributes:
        sparsity: share of the weights to set to zero, 0 <= sparsity < 1; None where the pattern fixes it.
        pattern: 'unstructured', 'N:M' such as '2:4', or 'block:4x1'.
        scope: how sparsity is distributed over layers: 'layer' (equally), 'global', 'erk' or 'auto'; None chooses
            'auto' with samples, and 'layer' without.
        layers: sparsity of some layers, by a glob over their names.
        include: globs over node names, tensor names and operator types; only what they match is pruned.
        exclude: globs of the same kind; what they match is not pruned.
        keep_zeros: whether weights that are zero already stay zero, and count towards the sparsity.

    Raises:
        BadKey: a value is wrong, or two values contradict each other.
    """

    sparsity: float | None = None
    pattern: str = "unstructured"
    scope: PruneScope | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        if self.pattern == CHANNELS:
            hint = "zeros only here: [[call onnxshot.shrink|cut channels with onnxshot prune, and quantize the result]]"
            raise BadKey(("pattern",), f"is {CHANNELS!r}, which cuts them out", hint)
        try:
            pattern = self.parsed_pattern
        except (ValueError, TypeError) as e:
            hint = "unstructured, 'N:M' such as '2:4' (in quotes) with N below M, or block:4x1"
            raise BadKey(("pattern",), f"is {shown(self.pattern)}", hint) from e
        fixed, layers = pattern.sparsity, self.layers
        if self.sparsity is None and fixed is None:
            raise BadKey(("sparsity",), "is missing", "give a share of the weights, such as 0.5")
        refuse(
            (
                ("sparsity", self.sparsity, self.sparsity is None or _is_share(self.sparsity), _SHARE),
                ("layers", layers, isinstance(layers, Mapping), "give globs with their sparsity: {'conv1*': 0.3}"),
                ("scope", self.scope, self.scope in (None, *SCOPES), f"one of {', '.join(SCOPES)}"),
                texts("include", self.include),
                texts("exclude", self.exclude),
                ("keep_zeros", self.keep_zeros, isinstance(self.keep_zeros, bool), "true or false"),
            )
        )
        for glob, share in layers.items():
            refuse(((("layers", glob), share, isinstance(glob, str), "a glob as its key"),))
            refuse(((("layers", glob), share, _is_share(share), _SHARE),))
        if fixed is not None and self.sparsity is not None and abs(self.sparsity - fixed) > 1e-6:
            raise BadKey(("sparsity",), f"is {self.sparsity}, beside the {fixed:.4g} of", "leave it out", ("pattern",))
        if fixed is not None and layers:
            hint = f"{pattern} makes {fixed:.4g} of every layer: exclude some"
            raise BadKey(("layers",), "is given beside the fixed share of", hint, ("pattern",))

    @property
    def parsed_pattern(self) -> Pattern:
        """The parsed pattern."""
        return Pattern.parse(self.pattern)

    @property
    def share(self) -> float:
        """The sparsity asked for, or the one that the pattern fixes."""
        fixed = self.parsed_pattern.sparsity
        return float(self.sparsity if self.sparsity is not None else fixed or 0.0)

    def resolved(self, has_data: bool) -> PruneStage:
        """The stage with `sparsity` and `scope` filled in. Raises UsageError where 'auto' lacks samples."""
        if self.scope == "auto" and not has_data and not self.parsed_pattern.of:
            raise UsageError("scope is 'auto', and there are no samples", "give [[calib=DATA]], or scope erk")
        return replace(self, sparsity=self.share, scope=self.scope or ("auto" if has_data else "layer"))


@dataclass(frozen=True, slots=True)
class ShrinkStage(Plain):
    """A stage that removes channels (see `onnxshot.shrink`, whose arguments have the names of the fields).

    Exactly one of the first four fields sets the target.

    Attributes:
        target_flops: share of the multiply-accumulates to keep, above 0 and up to 1.
        target_params: share of the parameters to keep.
        target_latency: share of the latency to keep.
        max_drop: most points that the score of `evaluate` may drop, 0 or above.
        evaluate: function that scores a model, as 'file.py:function'.
        scope: which channels may be removed: 'all', 'mlp' or 'heads'.
        multiple: the numbers of channels that remain are multiples of this: 1, 8 or 16.
        include: globs over node names, tensor names and operator types; only what they match is cut.
        exclude: globs of the same kind; what they match is not cut.
        importance: how channels are ranked: 'error', 'activation', 'batchnorm', 'l1', 'l2', or 'auto'.

    Raises:
        BadKey: a value is wrong, or the number of targets is not one.
    """

    target_flops: float | None = None
    target_params: float | None = None
    target_latency: float | None = None
    max_drop: float | None = None
    evaluate: str | None = None
    scope: ShrinkScope = "all"
    multiple: Multiple = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    importance: Importance = "auto"

    def __post_init__(self) -> None:
        targets, drop = self.targets, self.max_drop
        if (drop is None) != (self.evaluate is None):
            given, lacking = ("max_drop", "evaluate") if self.evaluate is None else ("evaluate", "max_drop")
            raise BadKey((given,), "is given without", "a drop is of the score of a function: give both", (lacking,))
        if not targets:
            hint = "give it, or [[target_params]], [[target_latency]] or [[max_drop|--max-drop]]"
            raise BadKey(("target_flops",), "is missing", hint)
        if len(targets) > 1:
            one, other, *_ = targets
            raise BadKey((one,), "is given beside", "give one of them", (other,))
        shares = ((name, value) for name, value in targets.items() if name != "max_drop")
        refuse((name, value, is_number(value) and 0 < value <= 1, _KEPT) for name, value in shares)
        refuse(
            (
                ("max_drop", drop, drop is None or (is_number(drop) and drop >= 0), "a finite number, 0 or above"),
                ("evaluate", self.evaluate, isinstance(self.evaluate, str | None), "such as 'score.py:top1'"),
                ("scope", self.scope, self.scope in SHRINK_SCOPES, "one of all, mlp, heads"),
                ("multiple", self.multiple, self.multiple in MULTIPLES, "one of 1, 8, 16"),
                texts("include", self.include),
                texts("exclude", self.exclude),
                ("importance", self.importance, self.importance in IMPORTANCES, f"one of {', '.join(IMPORTANCES)}"),
            )
        )

    def resolved(self, has_data: bool) -> ShrinkStage:
        """The stage with `importance` filled in. Raises UsageError where it needs samples and there are none."""
        if not has_data and self.importance in ("error", "activation"):
            hint = "give calibration data, or importance 'l1' or 'l2'"
            raise UsageError(f"importance {self.importance!r} needs data", hint)
        by_default: Importance = "error" if has_data else "l2"
        return replace(self, importance=by_default if self.importance == "auto" else self.importance)

    @property
    def targets(self) -> dict[str, float]:
        """The targets that are given, by field name."""
        every = {"target_flops": self.target_flops, "target_params": self.target_params}
        every |= {"target_latency": self.target_latency, "max_drop": self.max_drop}
        return {name: value for name, value in every.items() if value is not None}


@dataclass(frozen=True, slots=True)
class EmitStage(Plain):
    """A stage that writes the current model in other formats (see `onnxshot emit`).

    Attributes:
        to: formats, such as 'openvino' and 'tensorrt'.
        half_weights: whether float weights are stored in 16 bits.
        hardware: names of the hardware to compile for.

    Raises:
        BadKey: a value is wrong.
    """

    to: tuple[FormatName, ...] = ()
    half_weights: bool = False
    hardware: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse(
            (
                texts("to", self.to, "formats, such as [openvino]"),
                ("to", self.to, bool(self.to), "a list of formats, such as [openvino]"),
                ("half_weights", self.half_weights, isinstance(self.half_weights, bool), "true or false"),
                texts("hardware", self.hardware, "names"),
            )
        )
        hint = "leave it out: [[keep_stages=FOLDER]] keeps every stage as .onnx"
        refuse((("to", i), name, name != "onnx", hint) for i, name in enumerate(self.to))


ModelStage = PruneStage | ShrinkStage | Recipe
Stage = ModelStage | EmitStage
KINDS: dict[str, type[Stage]] = {"prune": PruneStage, "shrink": ShrinkStage, "quantize": Recipe, "emit": EmitStage}
HALF = "half"
"""The key of a stage that only converts floats to 16 bits, by default fp16."""


def kind_of(stage: Stage) -> str:
    """The key of a stage in YAML: 'prune', 'shrink', 'quantize' or 'emit'."""
    return next(name for name, kind in KINDS.items() if isinstance(stage, kind))


@dataclass(frozen=True, slots=True)
class Stages:
    """A recipe of several stages.

    Attributes:
        stages: in the order in which they run.

    Raises:
        BadKey: there are no stages, they only emit, or their order cannot work.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise BadKey(("stages",), "is empty", f"give one of {', '.join(KINDS)}, or more")
        if all(isinstance(stage, EmitStage) for stage in self.stages):
            raise BadKey(("stages",), "only emit", "convert without compressing with [[onnxshot.emit|onnxshot emit]]")
        cut = [i for i, stage in enumerate(self.stages) if isinstance(stage, ShrinkStage)]
        for i, stage in enumerate(self.stages):
            if cut and i < cut[-1] and isinstance(stage, PruneStage) and stage.parsed_pattern != Pattern():
                said = f"cuts channels after the {stage.pattern} zeros of"
                hint = "removing channels moves weights, and zeros with them, out of blocks: put shrink before prune"
                raise BadKey(("stages", cut[-1]), said, hint, ("stages", i))

    def to_dict(self) -> dict[str, Any]:
        """The stages as plain values: dicts, lists, strings and numbers."""
        return {"stages": [{kind_of(stage): stage.to_dict()} for stage in self.stages]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stages:
        """Make stages from plain values: those of `to_dict`, or the fields of a single quantize stage.

        Raises:
            BadKey: a key or value is wrong. The message names its path, such as stages[0].prune.sparsity.
        """
        if "stages" not in values:
            return cls((Recipe.from_dict(with_mode(values)),))
        beside = [key for key in values if key != "stages"]
        if beside:
            raise BadKey((beside[0],), "is given beside", "put it into one of them", ("stages",))
        listed = values["stages"]
        if not isinstance(listed, list | tuple):
            hint = "give a list of stages, such as '- quantize: {effort: best}'"
            raise BadKey(("stages",), f"is {shown(listed)}", hint)
        return cls(tuple(_stage(i, item) for i, item in enumerate(listed)))


def _stage(number: int, item: Any) -> Stage:
    where, kinds = ("stages", number), (*KINDS, HALF)
    hint = f"one of {', '.join(kinds)}, with its keys, such as '- quantize: {{effort: best}}'"
    for name in item if isinstance(item, Mapping) else ():
        if name not in kinds:
            raise BadKey((*where, name), "is no stage", hint)
    refuse(((where, item, isinstance(item, Mapping) and len(item) == 1, hint),))
    ((name, values),) = item.items()
    values = {} if values is None else values
    refuse((((*where, name), values, isinstance(values, Mapping), "keys and values"),))
    try:
        if name == "prune" and values.get("pattern") == CHANNELS:
            return _cut(values)
        if name == HALF:
            return Recipe.from_dict({"precision": "fp16", **values})
        return KINDS[name].from_dict(with_mode(values) if KINDS[name] is Recipe else values)
    except BadKey as e:
        raise e.under(*where, name) from e


def _cut(values: Mapping[str, Any]) -> ShrinkStage:
    """A shrink stage that is written as on the command line: `prune` with pattern channels, maybe with sparsity."""
    given = {key: value for key, value in values.items() if key not in ("pattern", "sparsity")}
    if "sparsity" in values:
        refuse((("sparsity", values["sparsity"], _is_share(values["sparsity"]), _SHARE),))
        given["target_flops"] = 1 - values["sparsity"]
    return ShrinkStage.from_dict(given)


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= value < 1
