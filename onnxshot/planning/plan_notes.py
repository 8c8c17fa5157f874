"""What a plan does otherwise than the recipe asks for, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxshot.planning.block_schemes import bits_of
from onnxshot.planning.int8_or_float import Decisions
from onnxshot.planning.node_mode import is_weighted
from onnxshot.planning.plan import FLOAT, FOLDED, STATIC, WeightPlan
from onnxshot.targets.base import Target
from onnxshot.wording import worded


def plan_notes(made: Decisions, target: Target, planned: Mapping[str, WeightPlan]) -> tuple[str, ...]:
    """Notes on weights that are not in 4 bits or that no kernel multiplies by, and on what of a recipe had no effect.

    Args:
        made: the mode of each node.
        target: the rules of the runtime.
        planned: node label -> how its weight is quantized.
    """
    return (
        *_of_bits(made, target, planned), *_of_forms(planned), *_of_modes(made), *_of_method(made), *_of_patterns(made),
    )  # fmt: skip


def _of_bits(made: Decisions, target: Target, planned: Mapping[str, WeightPlan]) -> Iterator[str]:
    asked = [made.asked.of(node) for node in made.slot if node in made.how]
    in_4_bits = sum(bits_of(recipe) == 4 for recipe in asked)
    others = in_4_bits - sum(plan.scheme.dtype.bits == 4 for plan in planned.values())
    if others:
        whole = "" if target.block_operator else ", whose inputs divide into blocks"
        why = f"blocks of 4 bits exist for products of matrices and tables{whole}"
        yield f"{others} of {in_4_bits} weights are kept in {target.weight.dtype.name}: {why}"


def _of_forms(planned: Mapping[str, WeightPlan]) -> Iterator[str]:
    stored = [name for name, plan in planned.items() if plan.in_blocks and plan.form == FOLDED]
    if stored:
        bits = " and ".join(map(str, sorted({planned[name].scheme.dtype.bits for name in stored})))
        which = f"{len(stored)} weights such as that of {stored[0]!r} are stored in {bits} bits"
        yield f"{which}, and are floats from when the file is loaded: no kernel multiplies by them"


def _of_modes(made: Decisions) -> Iterator[str]:
    treated = {node: made.how.get(node, FLOAT) for node in made.asked.modes if is_weighted(node)}
    unmet = [node for node, how in treated.items() if how != made.asked.modes[node]]
    if unmet:
        node, why = unmet[0], made.why.get(unmet[0], "")
        said = f"{made.asked.modes[node]} for {node.label!r}, which is {treated[node]}"
        which = f"{len(unmet)} of {len(treated)} layers do not have the mode that the recipe asks for"
        yield f"{which}: {said}{why and ': '}{why}"


def _of_method(made: Decisions) -> Iterator[str]:
    quantized = {node: how for node, how in made.how.items() if how != FLOAT}
    methods = {made.asked.of(node).method for node in quantized}
    if STATIC not in quantized.values() and methods - {"auto"}:
        yield worded("[[method]] has no effect: no range of an activation is calibrated")


def _of_patterns(made: Decisions) -> Iterator[str]:
    if names := made.asked.unmatched:
        yield f"nothing in this model has the name of {' or '.join(map(repr, names))}, which may match nothing"
