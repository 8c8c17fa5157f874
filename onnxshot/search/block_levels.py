"""The levels at which the weights of layers can be stored: 4 bits in large to small blocks, 8 bits, float.

A level is a rule of a recipe's `layers`. How many bytes a layer takes at a level follows from its plan. How much finer
one level rounds than another is measured on some rows of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxshot.errors import TargetError
from onnxshot.graph import Constant, Model, Node, weights
from onnxshot.graph.weight_pieces import reads_rows, rows
from onnxshot.maths.affine import INT4, PerBlock, QuantScheme, dequantize, quantize, weight_params
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import PerChannel
from onnxshot.planning.block_schemes import bits_of, input_axis, refuse_blocks, scale_type
from onnxshot.planning.name_patterns import exact_patterns, match_nodes
from onnxshot.planning.plan import FLOAT, WEIGHTS, Plan, WeightPlan
from onnxshot.planning.qdq_overhead import stored_bytes
from onnxshot.recipes.plain_values import CHANNEL
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_SIZES = (128, 64, 32, 16)  # of blocks
_SAMPLED = 128  # rows of a weight on which rounding is measured
_OF_LEVEL = ("mode", "bits", "block", "asymmetric", "weight_type")

Rule = Mapping[str, Any]
FLOAT_RULE: Rule = {"mode": FLOAT}


def plain_bits(recipe: Recipe) -> Recipe:
    """The recipe with the bits of its weights in `bits` instead of in `weight_type`."""
    return replace(recipe, weight_type=None, bits=4) if recipe.weight_type == INT4.name else recipe


def level_rules(target: Target, recipe: Recipe) -> list[Rule]:
    """The levels that a recipe allows on a target, the coarsest first; float is the last.

    With 4 bits: the recipe's block, or else 128, and smaller ones, then 8 bits. With 8 bits: that. Where the recipe
    does not say whether blocks have zero points, 4 bits come with and without.
    """
    recipe = plain_bits(recipe)
    found: list[dict[str, Any]] = []
    given = recipe.asymmetric
    if recipe.bits != 8:
        sizes: list[int | str] = [size for size in _SIZES if not isinstance(recipe.block, int) or size < recipe.block]
        sizes = [*([recipe.block] if recipe.block is not None else []), *sizes]
        zeros = (given,) if given is not None else (False, True)
        found += [{"bits": 4, "block": size, "asymmetric": zero} for size in sizes for zero in zeros]
    block = recipe.block if recipe.bits == 8 and recipe.block is not None else target.block_sizes[8]
    found.append({"bits": 8, "block": block, "asymmetric": bool(given)})
    return [*(rule for rule in found if _taken(target, recipe, rule)), FLOAT_RULE]


def said(rule: Rule) -> str:
    """A level in words."""
    if "bits" not in rule:
        return "float" if rule else "as the recipe says"
    block = "one block per output" if rule["block"] == CHANNEL else f"block {rule['block']}"
    return f"{rule['bits']} bits, {block}" + (", zero points" if rule["asymmetric"] else "")


def _taken(target: Target, recipe: Recipe, rule: Rule) -> bool:
    try:
        under = replace(recipe, layers={}, **rule)
        refuse_blocks(target, under)
    except TargetError:
        return False
    return bits_of(under) in target.block_bits | target.channel_bits


def layers_of(model: Model, plan: Plan, recipe: Recipe) -> dict[Node, str]:
    """The layers whose level can be chosen, in graph order, with a pattern that matches each alone.

    Layers whose level the recipe's own rules set are left out, and those that no pattern matches alone.
    """
    patterns, labels = exact_patterns(model), plan.labels(WEIGHTS)
    fixed: set[Node] = set()
    for pattern, rule in recipe.rules.items():
        if any(getattr(rule, name) is not None for name in _OF_LEVEL):
            fixed |= match_nodes(model, (pattern,), "the pattern of layers").keys()
    walked = (node for _, node in model.walk())
    return {n: patterns[n.label] for n in walked if n.label in labels and n not in fixed and n.label in patterns}


@dataclass(frozen=True, slots=True)
class Stored:
    """How much a group of layers takes, and how coarsely it is rounded, at one level.

    Attributes:
        rule: the level.
        bytes: of its weights, scales and zero points.
        error: squared error of the weights relative to their energy, the mean over their values; 0 in float.
    """

    rule: Rule
    bytes: int
    error: float


def stored_at(
    group: Sequence[Node], plans: Sequence[tuple[Rule, Plan]], same: Mapping[Constant, Constant]
) -> list[Stored]:
    """What a group takes at each level.

    Args:
        group: layers.
        plans: the levels, each with the plan in which all layers have it.
        same: a weight -> the weight that is stored in its place; see `layer_groups`.
    """
    found = []
    known: dict[tuple[Constant, QuantScheme], float] = {}
    for rule, plan in plans:
        total, noise, values, seen = 0, 0.0, 0, set[Any]()
        for node in group:
            planned = plan.weights.get(node.label)
            weight = node.inputs[_slot(node, plans)]
            source = same.get(weight, weight)
            key = (source, _stored_as(planned) if planned is not None else None)
            if key in seen:
                continue
            seen.add(key)
            count = math.prod(weight.shape)
            values += count
            if planned is None:
                total += stored_bytes(weight)
                continue
            total += _bytes(node, weight, planned)
            if (weight, planned.scheme) not in known:
                known[weight, planned.scheme] = _error(node, weight, planned)
            noise += known[weight, planned.scheme] * count
        found.append(Stored(rule, total, noise / max(values, 1)))
    return found


def _stored_as(planned: WeightPlan) -> tuple[Any, ...]:
    """What decides whether two readers of a weight share its integers; not the axis, which a tied table has turned."""
    scheme, blocks = planned.scheme, planned.scheme.granularity
    return scheme.dtype.bits, scheme.symmetric, blocks.size if isinstance(blocks, PerBlock) else blocks


def _slot(node: Node, plans: Iterable[tuple[Rule, Plan]]) -> int:
    return next(plan.weights[node.label].slot for _, plan in plans if node.label in plan.weights)


def _bytes(node: Node, weight: Constant, planned: WeightPlan) -> int:
    """Bytes of a weight's integers, scales and zero points."""
    scheme, count = planned.scheme, math.prod(weight.shape)
    wide = np.dtype(helper.tensor_dtype_to_np_dtype(scale_type(weight))).itemsize
    if not isinstance(scheme.granularity, PerBlock):
        each = weight.shape[scheme.granularity.axis] if isinstance(scheme.granularity, PerChannel) else 1
        return -(-count * scheme.dtype.bits // 8) + each * wide
    axis = input_axis(node, planned.slot)
    assert axis is not None
    inputs, size = weight.shape[axis], scheme.granularity.size
    blocks = -(-inputs // size)
    outputs = count // max(inputs, 1)
    zeros = 0 if scheme.symmetric else -(-blocks * scheme.dtype.bits // 8)
    return int(outputs * (blocks * (size * scheme.dtype.bits // 8 + wide) + zeros))


def _error(node: Node, weight: Constant, planned: WeightPlan) -> float:
    """Squared error relative to the energy, on some rows of a weight in blocks; of other weights, on all of it."""
    scheme = planned.scheme
    if not isinstance(scheme.granularity, PerBlock):
        given = np.asarray(weights.read(weight), np.float32)
        params = weight_params(given, scheme)
    else:
        axis = input_axis(node, planned.slot)
        assert axis is not None
        given = _some_rows(weight, turned=axis != len(weight.shape) - 1)
        scheme = replace(scheme, granularity=PerBlock(1, scheme.granularity.size))
        params = weight_params(given, scheme) if planned.method == "minmax" else fit_blocks(given, scheme)
    energy = float(np.square(given, dtype=np.float64).sum())
    noise = float(np.square(given - dequantize(quantize(given, params), params), dtype=np.float64).sum())
    return noise / energy if energy > 0 else 0.0


def _some_rows(weight: Constant, *, turned: bool) -> NDArray[np.float32]:
    """Up to _SAMPLED rows [n, inputs] of a weight, evenly spaced."""
    if not turned and len(weight.shape) == 2 and reads_rows(weight):
        step = max(weight.shape[0] // _SAMPLED, 1)
        parts = [rows(weight, at, at + 1) for at in range(0, weight.shape[0], step)][:_SAMPLED]
        return np.ascontiguousarray(np.concatenate(parts), np.float32)
    whole = weights.read(weight)
    whole = np.swapaxes(whole, -1, -2) if turned else whole
    flat = whole[(0,) * (whole.ndim - 2)]  # of a stack of matrices, the first
    return np.ascontiguousarray(flat[:: max(len(flat) // _SAMPLED, 1)][:_SAMPLED], np.float32)


@dataclass(frozen=True, slots=True)
class Level:
    """One choice for a group: a rule, the bytes of its weights, and what the outputs lose by it."""

    rule: Rule
    bytes: int
    loss: float


def ladder(stored: Sequence[Stored], loss_of: Callable[[Stored], float]) -> tuple[Level, ...]:
    """The levels of a group that are worth taking: the lower convex hull of loss over bytes, the smallest first."""
    levels = sorted((Level(one.rule, one.bytes, loss_of(one)) for one in stored), key=lambda x: (x.bytes, x.loss))
    hull: list[Level] = []
    for level in levels:
        if hull and level.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], level):
            hull.pop()
        hull.append(level)
    return tuple(hull)


def _slope(low: Level, high: Level) -> float:
    """Loss saved per byte between two levels."""
    saved = low.loss - high.loss
    return saved / max(high.bytes - low.bytes, 1)


def steps(ladders: Sequence[Sequence[Level]]) -> Iterator[int]:
    """Numbers of groups in the order in which they are raised by one level: the most loss saved per byte first."""
    found = [
        (-_slope(low, high), i, step)
        for i, levels in enumerate(ladders)
        for step, (low, high) in enumerate(pairwise(levels))
    ]
    yield from (i for _, i, _ in sorted(found))
