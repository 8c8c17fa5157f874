"""Choose the integer types and granularities of a recipe on a target. Refuse what the target cannot run."""

from __future__ import annotations

from dataclasses import replace

from onnxshot.errors import TargetError
from onnxshot.maths.affine import INT4, QuantScheme
from onnxshot.planning.block_schemes import refuse_blocks
from onnxshot.planning.node_recipe import under_rule
from onnxshot.planning.plan import DYNAMIC, STATIC, WEIGHTS
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.vocabulary import ACTIVATION_TYPES, WEIGHT_TYPES
from onnxshot.targets.base import Target

_LEAVE_OUT = "leave out [[activation_type]] and [[weight_type]]"


def schemes(target: Target, recipe: Recipe) -> tuple[QuantScheme, QuantScheme]:
    """The default schemes of activations and weights, after checking those of each rule in `layers` too.

    Args:
        target: the rules of the runtime.
        recipe: what the user asks for.

    Returns:
        (activation scheme, weight scheme).

    Raises:
        TargetError: the target cannot run a pair of types, with the reason.
    """
    for rule, glob in {rule: glob for glob, rule in recipe.rules.items()}.items():  # many layers share one rule
        try:
            schemes(target, under_rule(recipe, rule))
        except TargetError as e:
            raise TargetError(f"layers[{glob!r}]: {e.message}", e.hint) from e
    activation, weight = target.activation, target.weight
    if recipe.activation_type is not None and recipe.activation_type != activation.dtype.name:
        zero_at_0 = activation.symmetric or recipe.activation_type in target.symmetric
        activation = replace(activation, dtype=ACTIVATION_TYPES[recipe.activation_type], symmetric=zero_at_0)
    if recipe.weight_type is not None and recipe.weight_type != weight.dtype.storage_name:
        weight = replace(weight, dtype=WEIGHT_TYPES[recipe.weight_type])
    if recipe.mode == STATIC:
        reason = target.accepts(activation.dtype, weight.dtype)
        if reason:
            raise TargetError(
                f"{activation.dtype.name} activations with {weight.dtype.name} weights: {reason}",
                "int4 weights take [[mode=weights]]" if weight.dtype is INT4 else _LEAVE_OUT,
            )
    elif recipe.mode == WEIGHTS and weight.dtype.floating:
        raise TargetError("float8 weights need a calibrated float8 activation", "use an integer [[weight_type]]")
    elif recipe.mode == WEIGHTS:
        refuse_blocks(target, recipe)
    elif recipe.mode == DYNAMIC:
        _refuse_dynamic(target, recipe, weight)
    return activation, weight


def _refuse_dynamic(target: Target, recipe: Recipe, weight: QuantScheme) -> None:
    """Raise TargetError for types that dynamic quantization does not have: DynamicQuantizeLinear-11 gives uint8."""
    if not target.dynamic:
        raise TargetError(f"{target.name} has no dynamic quantization", "use [[mode=static]] or [[mode=weights]]")
    if recipe.activation_type not in (None, "uint8"):
        said = f"dynamic activations are uint8, not {recipe.activation_type}"
        raise TargetError(said, "leave out [[activation_type]]")
    if weight.dtype.floating or weight.dtype.bits not in (7, 8):
        raise TargetError(f"MatMulInteger takes 8-bit weights, not {weight.dtype.name}", "leave out [[weight_type]]")
