"""Mode "auto": choose for each product whether it is multiplied in blocks of 4 or 8 bits, or in int8.

Few rows at a time (the steps of a decoder) run fastest from weights in blocks, which are also the smallest. Many rows
(prompts, encoders) run fastest in int8. Which is faster where is measured on this machine, at the numbers of rows that
the samples bring to each product.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from numpy.typing import NDArray

from onnxshot.calibration.readers import Dataset, split
from onnxshot.errors import CalibrationError, TargetError
from onnxshot.execution.product_errors import Multiplied, product_errors
from onnxshot.graph import Constant, Model, Node
from onnxshot.graph.macs import Shape, tensor_sizes
from onnxshot.graph.ops import weight_slot
from onnxshot.maths.quant_scheme import PerBlock
from onnxshot.passes.tie_weights import ties_of
from onnxshot.planning.block_schemes import block_plan, uses_operator
from onnxshot.planning.node_mode import is_embedding, is_weighted, node_mode
from onnxshot.planning.plan import DYNAMIC, OPERATOR, WEIGHTS, WeightPlan
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes import product_speed
from onnxshot.runtimes.product_speed import Blocks, ProductSpeed
from onnxshot.stages.prepare_model import Prepared

AUTO: Final = "auto"
_SAMPLES = 16  # whose shapes are looked at
_WORTH = 0.8  # share of the time of blocks from which int8 is taken: it is larger, and rounds activations coarsely
_LOOKED_AT = 3  # samples on which errors are measured
_USUAL_DB = 30.0  # SQNR of a product from which int8 is accurate enough, whatever blocks lose
_SHORT = 8  # elements of an input of integers that may say how large a tensor is
_BLOCK_KEYS = {"bits", "block", "asymmetric"}
_PASTS = ("past", "cache")


@dataclass(frozen=True, slots=True)
class _Product:
    """A product that either form can compute.

    Attributes:
        node: MatMul or Gemm.
        blocks: of its weight.
        rows: number of rows that each sample brings; empty where unknown.
    """

    node: Node
    blocks: Blocks
    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs of the weight."""
        rows, columns = self.node.inputs[1].shape
        return (columns, rows) if self.turned else (rows, columns)

    @property
    def turned(self) -> bool:
        """Whether the weight is stored [outputs, inputs]."""
        return self.node.op == "Gemm" and bool(self.node.attrs.get("transB", 0))


def settle_forms(prepared: Prepared, data: Dataset | None) -> tuple[Prepared, list[str]]:
    """Write into the recipe which form each product gets, so that a replay needs no trial.

    Returns:
        The model with the recipe to go on with, and notes for the user. Nothing changes where the mode is not "auto".

    Raises:
        CalibrationError: there are no samples.
        TargetError: the target does not have both forms.
    """
    recipe = prepared.recipe
    if recipe.mode != AUTO:
        return prepared, []
    in_blocks = replace(recipe, mode=WEIGHTS, layers={})
    if not uses_operator(prepared.target, in_blocks) or "MatMul" not in prepared.target.dynamic:
        what = f"mode auto needs products in blocks and in int8; {prepared.target.name} does not have both"
        raise TargetError(what, "use [[mode=weights]] or [[mode=static]], or [[target=ort]]")
    if data is None:
        what = "mode auto needs to know how many rows reach each product"
        raise CalibrationError(what, "give samples with [[calib=DATA]]")
    steps = _generates(prepared.model)
    products = _products(prepared, in_blocks, _shapes(data))
    speed = ProductSpeed()
    faster = [p for p in products if _is_faster_in_int8(p, steps, speed)]
    coarse = _coarse_in_int8(prepared, faster, data)
    many = {p.node.label for p in faster} - coarse
    few = {p.node.label for p in products} - many
    settled = _settled(prepared, in_blocks, _others(prepared, in_blocks, few, many), many)
    return replace(prepared, recipe=settled), [_told(products, many, coarse, steps)]


def _others(prepared: Prepared, in_blocks: Recipe, few: set[str], many: set[str]) -> list[str]:
    """Labels of the nodes that get weights in blocks, in graph order.

    They are the products of `few` rows, those in subgraphs, whose rows are not known, those that int8 kernels do not
    compute, and embedding tables.
    """
    model, target = prepared.model, prepared.target
    in_int8, top = _in_int8(in_blocks), set(model.graph.nodes)
    found = []
    for _, node in model.walk():
        if is_embedding(node):
            found.append(node.label)
        if not is_weighted(node) or node.op not in ("MatMul", "Gemm") or node.label in many:
            continue
        slot = weight_slot(node)
        if slot is None or node_mode(node, target, in_blocks, is_top=True, forced=False)[0] != WEIGHTS:
            continue
        dynamic = node_mode(node, target, in_int8, is_top=True, forced=False)[0] == DYNAMIC
        chosen = node.label in few or node not in top or not dynamic
        if chosen and block_plan(node, slot, target, in_blocks) is not None:
            found.append(node.label)
    return found


def _in_int8(in_blocks: Recipe) -> Recipe:
    """The recipe with products in int8."""
    return replace(in_blocks, mode=DYNAMIC, bits=None, block=None, asymmetric=None)


def _settled(prepared: Prepared, in_blocks: Recipe, labels: Sequence[str], many: set[str]) -> Recipe:
    """The recipe that says which form each product gets. Rules of the user win."""
    recipe = prepared.recipe
    if not many:
        return replace(in_blocks, layers=recipe.layers)
    rule: dict[str, Any] = {"mode": WEIGHTS, "bits": in_blocks.bits}
    rule |= {key: value for key in ("block", "asymmetric") if (value := getattr(recipe, key)) is not None}
    rule = {key: value for key, value in rule.items() if value is not None}
    # A rule of the user that speaks of blocks, and of no mode, asks for blocks.
    given = {
        pattern: {"mode": WEIGHTS, **asked} if _BLOCK_KEYS & asked.keys() else asked
        for pattern, asked in recipe.layers.items()
    }
    own: dict[str, Mapping[str, Any]] = {glob.escape(label): rule for label in labels}
    return replace(
        recipe, mode=DYNAMIC, bits=None, block=None, asymmetric=None, layers={**own, **given}
    )  # fmt: skip


def _products(prepared: Prepared, in_blocks: Recipe, samples: Sequence[Mapping[str, Any]]) -> list[_Product]:
    """The products that both forms can compute, in graph order.

    One whose weight is also an embedding table counts as reached by an unknown number of rows: it stays in blocks, as
    the table does, and is stored once.
    """
    model, target = prepared.model, prepared.target
    in_int8 = _in_int8(in_blocks)
    found = _sizes(model, samples)
    tables = {node.inputs[0] for _, node in model.walk() if is_embedding(node)}
    tied = {one for pair in ties_of(model, model.tied) for one in pair[:2] if tables & set(pair[:2])} | tables
    products = []
    for node in model.graph.nodes:
        if not is_weighted(node) or node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if not isinstance(weight, Constant) or len(weight.shape) != 2:
            continue
        if node_mode(node, target, in_int8, is_top=True, forced=False)[0] != DYNAMIC:
            continue
        planned = block_plan(node, 1, target, in_blocks)
        if planned is not None and planned.form == OPERATOR:
            shapes = [sizes.get(node.inputs[0].name) for sizes in found]
            known = [math.prod(shape[:-1]) for shape in shapes if shape is not None]
            sure = len(known) == len(shapes) and weight not in tied
            products.append(_Product(node, _blocks(planned), tuple(known) if sure else ()))
    return products


def _sizes(model: Model, samples: Sequence[Mapping[str, NDArray[Any]]]) -> list[Mapping[str, Shape]]:
    """The shapes of all tensors in the run of each sample; inferred once for samples that are alike."""
    known: dict[tuple[object, ...], Mapping[str, Shape]] = {}
    found = []
    for feed in samples:
        shapes = {name: x.shape for name, x in feed.items()}
        short = [x.tobytes() for x in feed.values() if x.dtype.kind in "biu" and x.size <= _SHORT]  # may hold sizes
        alike = (*shapes.items(), *short)
        if alike not in known:
            known[alike] = tensor_sizes(model, shapes, feed).shapes
        found.append(known[alike])
    return found


def _blocks(planned: WeightPlan) -> Blocks:
    scheme, granularity = planned.scheme, planned.scheme.granularity
    assert isinstance(granularity, PerBlock)
    return Blocks(scheme.dtype.bits, granularity.size, not scheme.symmetric)


def _shapes(data: Dataset) -> list[Mapping[str, Any]]:
    count = min(len(data), _SAMPLES)
    return [data[i * len(data) // count].feed for i in range(count)]


def _generates(model: Model) -> bool:
    """Whether the model is a decoder that takes what it has seen as inputs: most of its runs bring one row."""
    return any(any(word in t.name.lower() for word in _PASTS) for t in model.graph.inputs)


def _is_faster_in_int8(product: _Product, steps: bool, speed: ProductSpeed) -> bool:
    """Whether int8 is clearly faster over all samples; for a decoder, with as many steps as a sample has tokens."""
    if not product.rows:
        return False
    inputs, outputs = product.shape
    total = dict.fromkeys(product_speed.FORMS, 0.0)
    for rows in product.rows:
        once = speed.of(inputs, outputs, rows, product.blocks)
        one = speed.of(inputs, outputs, 1, product.blocks) if steps else None
        for form in total:
            total[form] += once[form] + (rows * one[form] if one is not None else 0.0)
    return total[product_speed.DYNAMIC] < _WORTH * total[product_speed.BLOCKS]


def _coarse_in_int8(prepared: Prepared, products: Sequence[_Product], data: Dataset) -> set[str]:
    """Labels of the products that lose more in int8 than in blocks, and more than int8 usually does."""
    if not products:
        return set()
    shown = [
        Multiplied(
            p.node.label, p.node.inputs[0].name, p.node.inputs[1], p.turned, p.blocks.bits, p.blocks.size,
            not p.blocks.asymmetric,
        )
        for p in products
    ]  # fmt: skip
    feeds = [data[i].feed for i in range(min(len(split(len(data))[0]), _LOOKED_AT))]
    found = product_errors(prepared.model, shown, feeds, prepared.settings.threads)
    return {label for label, (as_int8, in_blocks) in found.items() if as_int8 < min(in_blocks, _USUAL_DB)}


def _told(products: Sequence[_Product], many: set[str], coarse: set[str], steps: bool) -> str:
    rows = [r for p in products for r in p.rows]
    reach = f"{min(rows)} to {max(rows)} rows" if rows else "an unknown number of rows"
    assumed = ", and as many steps of one row as a sample has" if steps else ""
    worse = f" ({len(coarse)} of these because int8 would round their inputs too coarsely)" if coarse else ""
    return (
        f"mode auto: samples bring {reach} to {len(products)} products{assumed}; on this machine, {len(many)} "
        f"of them are faster in int8 and {len(products) - len(many)} in blocks{worse}"
    )
